"""Runs with a barrier between rollouts: `runner=hts`, `serial` and `sync`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.checkpoints.state import State
from htsrl_cli.errors import NonFiniteError, RunError
from htsrl_cli.runners.loop import Run
from htsrl_cli.runners.member import Member, Report
from htsrl_cli.runners.snapshot import merge_parts


class BarrierRun(Run):
    """A run with `runner=hts`, `serial` or `sync`, from one barrier to the next."""

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        self._is_exact = all(self._roles.group.gather(self._is_exact))
        self._member = Member(self._roles, self._rollout)

    def _run_rollout(self, check: Callable[[], None]) -> None:
        self._member.check = check
        try:
            reports: list[Report] = self._member.ask("rollout")
        except NonFiniteError:
            # A checkpoint of this barrier holds the same slot, so every resume would end here.
            if self._plan.lag and self._saved_at == self._rollout:
                self._checkpoints.discard(self._env_steps)
            raise
        _check_equal(reports, self._roles.learner.num_updates_done)
        self._rollout = self._member.rollout
        self._logged = reports[0].logged
        self._seconds = {
            name: sum(report.seconds[name] for report in reports) / len(reports)
            for name in reports[0].seconds
        }
        # The sort keeps the order of columns, because ranks report in the order of their columns.
        ended = sorted((e for report in reports for e in report.episodes), key=lambda e: e[0])
        self._episodes = [episode for _, episode in ended]
        self._told = next((r.signum for r in reports if r.signum is not None), None)

    def _dismiss(self) -> None:
        """Tells the other ranks that no order will follow."""
        self._member.dismiss()

    def _parts(self) -> dict[str, State]:
        return merge_parts(self._member.ask("parts"))

    def _non_finite(self) -> list[str]:
        return sorted({name for names in self._member.ask("non_finite") for name in names})

    def _chains(self) -> list[str]:
        return [chain for chains in self._member.ask("chains") for chain in chains]


def _check_equal(reports: Sequence[Report], num_updates: int) -> None:
    """Checks that all ranks have the parameters and the optimizer of rank 0.

    Raises:
        RunError: a rank has others.
    """
    for rank, report in enumerate(reports):
        if report.sha256 != reports[0].sha256:
            raise RunError(
                f"rank {rank} and rank 0 have different parameters after update {num_updates}: "
                "one of them computes wrongly, for example because its memory is faulty; resume "
                "from a checkpoint before it, without the faulty machine"
            )
