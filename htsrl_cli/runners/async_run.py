"""Runs without a barrier: `runner=async`.

Environments run freely. The learner takes unrolls in order of arrival, makes an update from
`runner.unrolls_per_update` of them, and publishes the new parameters. The policy lag of an unroll
depends on timing, and so do the results. A replay takes both the order and the parameters' versions
from a recorded schedule, so that it repeats the recorded run bit for bit.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.checkpoints.state import State, split
from htsrl_cli.config.sections import AsyncRunnerConfig
from htsrl_cli.errors import ConfigError, RunError
from htsrl_cli.runners.load_meter import LoadMeter
from htsrl_cli.runners.loop import Run
from htsrl_cli.runners.replay import header, load_schedule
from htsrl_cli.runners.roles import Roles
from htsrl_cli.runners.snapshot import non_finite, parts_of_rank
from htsrl_cli.sampling.async_collector import AsyncCollector
from htsrl_cli.sampling.schedule import SCHEDULE_FILE, Unroll
from htsrl_cli.sampling.unrolls import UnrollQueue, copy_unroll, local_slot
from htsrl_cli.storage.slot import Slot
from htsrl_cli.tracking.lines import LineFile


class AsyncRun(Run):
    """A run with `runner=async`."""

    def __init__(
        self,
        roles: Roles,
        run_dir: Path,
        checkpoint: Checkpoint | None,
        check_folder: Callable[[], None],
        stack: ExitStack,
    ) -> None:
        self._runner = cast(AsyncRunnerConfig, roles.config.runner)
        self._queue = cast(UnrollQueue, roles.ring)
        self._collector = cast(AsyncCollector, roles.collector)
        plan, width = roles.plan, roles.learner.memory_width
        self._slot = local_slot(roles.spec, plan.sync_interval, plan.num_columns, width)
        # Full buffers that no update has used yet.
        self._arrived: deque[int] = deque()
        # Unrolls of a replay that have arrived too early.
        self._early: dict[tuple[int, int], tuple[Slot, Unroll]] = {}
        # For each unroll of the last update, how many versions were published while it waited.
        self._waited: list[int] = []
        self._replayed = load_schedule(roles.config)
        self._recorded: LineFile | None = None
        super().__init__(roles, run_dir, checkpoint, check_folder, stack)
        if self._runner.record:
            begun = -1 if checkpoint is None else self._rollout

            def is_before(line: dict[str, object]) -> bool:
                return cast(int, line.get("update", -1)) < begun

            self._recorded = LineFile(run_dir / SCHEDULE_FILE, is_before)
            stack.enter_context(closing(self._recorded))
            if checkpoint is None:
                self._record(header(roles.config))

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None and self._replayed is None:
            self._is_exact = False
        if checkpoint is not None and self._replayed is not None:
            if "versions" not in checkpoint.meta["parts"]:
                raise ConfigError(
                    "runner.replay",
                    str(self._runner.replay),
                    "the run in this folder has been no replay so far: replay in a new folder",
                )
            self._restore_versions(checkpoint)
        self._publish()
        self._collector.begin()

    def _run_rollout(self, check: Callable[[], None]) -> None:
        roles = self._roles
        watch = LoadMeter(self._collector.board, self._collector.num_steppers)
        unrolls = self._gather(check)
        began = time.monotonic()
        self._slot.check_filled()
        digest = roles.rollouts.begin(self._slot)
        self._logged = roles.learner.update(self._slot, check) | self._lags()
        roles.rollouts.add(digest)
        line: dict[str, Any] = {"update": self._rollout, "unrolls": unrolls}
        if self._replayed is None:
            line["waited"] = self._waited
        self._record(line)
        for unroll in unrolls:
            self._queue.consumed[unroll.env] += 1
        self._rollout += 1
        self._publish()
        self._episodes = [episode for _, episode in self._slot.episodes()]
        learner_s = time.monotonic() - began
        self._seconds = watch.shares(learner_s) | {"collecting": watch.seconds(), "barrier": 0.0}

    def _record(self, line: Mapping[str, Any]) -> None:
        """Adds a line to the schedule, if the run is recorded.

        Raises:
            RunError: the line cannot be written.
        """
        if self._recorded is None:
            return
        try:
            self._recorded.append(line)
        except OSError as error:
            raise RunError(
                f"{SCHEDULE_FILE} could not be written: {error.strerror}; fix the cause, then "
                "resume"
            ) from error

    def _publish(self) -> None:
        version = self._rollout
        self._roles.learner.write_parameters(self._roles.store.place(version))
        self._roles.store.publish(version)
        self._queue.published[0] = version
        self._collector.published(version)

    def _lags(self) -> dict[str, float]:
        """Returns the mean and the maximum policy lag of the slot's rows, in updates.

        Sets `_row_lags`.
        """
        lags = self._rollout - self._slot.versions[:-1]
        self._row_lags = dict(Counter(lags.ravel().tolist()))
        return {"learner/lag": float(lags.mean()), "learner/max_lag": float(lags.max())}

    def _gather(self, check: Callable[[], None]) -> list[Unroll]:
        """Fills the slot with the unrolls of the next update; returns what they were."""
        self._waited.clear()
        if self._replayed is not None:
            return self._gather_again(self._replayed.updates[self._rollout], check)
        unrolls = []
        for position in range(self._runner.unrolls_per_update):
            if not self._arrived:
                self._arrived.extend(self._collector.take(check))
            unrolls.append(self._empty(self._arrived.popleft(), self._slot, position))
        return unrolls

    def _gather_again(self, wanted: Sequence[Unroll], check: Callable[[], None]) -> list[Unroll]:
        """Fills the slot with the wanted unrolls; keeps others for later updates.

        Each buffer is emptied as soon as it arrives. Environments therefore never wait for a
        buffer that holds an unroll of a later update.
        """
        positions = {(unroll.env, unroll.number): i for i, unroll in enumerate(wanted)}
        found: dict[int, Unroll] = {}
        for key in positions.keys() & self._early.keys():
            early, found[positions[key]] = self._early.pop(key)
            copy_unroll(early, 0, self._slot, positions[key], self._queue.num_players)
        while len(found) < len(wanted):
            for buffer in self._collector.take(check):
                position = positions.get(self._queue.owner(buffer))
                if position is not None:
                    found[position] = self._empty(buffer, self._slot, position)
                else:
                    key = self._queue.owner(buffer)
                    slot = self._queue.one_unroll()
                    self._early[key] = slot, self._empty(buffer, slot, 0)
        unrolls = [found[i] for i in range(len(wanted))]
        assert unrolls == list(wanted), "a replayed unroll differs from the recorded one"
        return unrolls

    def _empty(self, buffer: int, slot: Slot, position: int) -> Unroll:
        """Copies a full buffer to a slot and frees it; returns what it was."""
        queue = self._queue
        unroll = queue.unroll(buffer)
        self._waited.append(self._rollout - int(queue.owners[buffer, 3]))
        copy_unroll(queue.slot_of_buffers, buffer, slot, position, queue.num_players)
        queue.release([buffer])
        return unroll

    def _non_finite(self) -> list[str]:
        return non_finite(self._roles, self._rollout)

    def _chains(self) -> list[str]:
        return self._roles.rollouts.chains

    def _parts(self) -> dict[str, State]:
        return {**parts_of_rank(self._roles, self._rollout), **self._old_versions()}

    def _old_versions(self) -> dict[str, State]:
        """Returns, for a replay, all versions that later requests may need."""
        if self._replayed is None:
            return {}
        store, last = self._roles.store, self._rollout
        versions = range(max(0, last - store.num_places + 2), last + 1)
        arrays = {f"{v}/{n}": a for v in versions for n, a in store.place(v).items()}
        return {"versions": State(arrays, {"versions": list(versions)})}

    def _restore_versions(self, checkpoint: Checkpoint) -> None:
        saved = split(State(checkpoint.arrays, checkpoint.meta["parts"]), "versions")
        for key, array in saved.arrays.items():
            version, _, name = key.partition("/")
            self._roles.store.place(int(version))[name][...] = array
