"""Runs with a barrier between rollouts.

    rollout       0        1            2            3
    collect     D0(θ0)   D1(θ1=θ0)    D2(θ2)       D3(θ3)
    learn         -      D0 → θ2      D1 → θ3      D2 → θ4

Rollout j fills slot Dj, using version θj of the parameters. The runners `hts` and `serial` follow
this schedule, with the same result: `hts` learns while it collects, and `serial` first learns and
then collects, in the main process. The runner `sync` learns from each rollout before it collects
the next rollout. Everything else happens at the barriers: slots are swapped, parameters are
published, metrics and checkpoints are written, and the first stop signal takes effect.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.errors import NonFiniteError
from htsrl_cli.runners.load_meter import LoadMeter
from htsrl_cli.runners.loop import Run
from htsrl_cli.seeding import action_noise
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.ring import Ring
from htsrl_cli.storage.slot import Slot


class BarrierRun(Run):
    """A run with `runner=hts`, `serial` or `sync`, from one barrier to the next."""

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        assert isinstance(self._roles.ring, Ring)
        self._ring = self._roles.ring
        self._write_parameters(self._rollout)
        self._open_rollout(self._rollout, self._roles.collector.obs)

    def _last_slot(self) -> Slot:
        return self._ring.slot(self._rollout - 1)

    def _run_rollout(self, check: Callable[[], None]) -> None:
        """Collects one rollout, makes the update that is due, and opens the next rollout's slot.

        With policy lag, the update learns from the previous rollout, so rollout 0 makes no update.
        Without policy lag, the update learns from this rollout.
        """
        collector, ring = self._roles.collector, self._ring
        watch = LoadMeter(collector.board, collector.num_steppers)
        barrier_s = watch.started_at - self._barrier_began
        self._logged = {}
        collector.begin()
        if self._plan.lag and self._rollout > 0:
            self._learn(self._rollout - 1, check)
        if self._plan.lag:
            self._write_parameters(self._rollout + 1)
        learner_s = watch.seconds()
        collector.finish(check)
        if not self._plan.lag:
            learner_s = -watch.seconds()
            self._learn(self._rollout, check)
            self._write_parameters(self._rollout + 1)
            learner_s += watch.seconds()
        self._barrier_began = time.monotonic()
        self._seconds = watch.shares(learner_s) | {"barrier": barrier_s}
        self._open_rollout(self._rollout + 1, ring.slot(self._rollout).obs[-1])

    def _learn(self, rollout: int, check: Callable[[], None]) -> None:
        """Makes one update from the full slot of rollout number `rollout`."""
        roles, slot = self._roles, self._ring.slot(rollout)
        assert self._plan.lag is not None
        slot.check_filled()
        versions = np.unique(slot.versions)
        lag = roles.store.version - int(versions[0])
        if len(versions) > 1 or lag != self._plan.lag:
            raise AssertionError(
                f"the slot was collected with parameter versions {versions}, but an update of "
                f"version {roles.store.version} needs a slot collected with version "
                f"{roles.store.version - self._plan.lag} only"
            )
        digest = roles.rollouts.begin(slot)
        try:
            logged = roles.learner.update(slot, check, self._ring.activations(rollout))
        except NonFiniteError:
            # A checkpoint of this barrier holds the same slot, so every resume would end here.
            if self._plan.lag and self._saved_at == self._rollout:
                self._checkpoints.discard(self._env_steps)
            raise
        self._logged = logged | {"learner/lag": float(lag)}
        roles.rollouts.add(digest)

    def _write_parameters(self, version: int) -> None:
        """Writes the learner's parameters to the store, as version `version`."""
        self._roles.learner.write_parameters(self._roles.store.place(version))

    def _open_rollout(self, rollout: int, obs: Array) -> None:
        """Publishes parameter version `rollout` and opens the slot of rollout number `rollout`.

        Args:
            obs: the rollout's first observations, one for each column.
        """
        self._rollout = rollout
        ring = self._ring
        self._roles.store.publish(rollout)
        shape, kind = ring.slot(rollout).noise.shape, self._roles.spec.actions.kind
        ring.begin(rollout, obs, action_noise(self._config.seed, rollout, shape, kind))
