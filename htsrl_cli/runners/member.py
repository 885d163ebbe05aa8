"""A rank's part of a run with a barrier: its environments, and its shards of every update.

    rollout       0        1            2            3
    collect     D0(θ0)   D1(θ1=θ0)    D2(θ2)       D3(θ3)
    learn         -      D0 → θ2      D1 → θ3      D2 → θ4

Rollout j fills slot Dj, using version θj of the parameters. The runners `hts` and `serial` follow
this schedule, with the same result: `hts` learns while it collects, and `serial` first learns and
then collects, in the main process. The runner `sync` learns from each rollout before it collects
the next rollout. Everything else happens at the barriers: slots are swapped, parameters are
published, metrics and checkpoints are written, and the first stop signal takes effect.

Rank 0 gives the orders. Every rank obeys them at the same time, and the answers return to rank 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from htsrl_cli.checkpoints.state import State, digest
from htsrl_cli.runners import snapshot
from htsrl_cli.runners.load_meter import LoadMeter
from htsrl_cli.runners.roles import Roles
from htsrl_cli.seeding import action_noise
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.ring import Ring
from htsrl_cli.storage.slot import Episode, Slot


@dataclass(frozen=True)
class Report:
    """The report of a rank to rank 0 about a rollout.

    Attributes:
        logged: metrics of the update, which are equal on all ranks.
        seconds: see `RunLog.rollout`.
        episodes: games that ended: env step, and results.
        signum: the first stop signal that the rank has received; None if none arrived.
        sha256: digest of the rank's parameters and optimizer; empty if no check is due.
    """

    logged: dict[str, float]
    seconds: dict[str, float]
    episodes: list[tuple[int, Episode]]
    signum: int | None
    sha256: str


class Member:
    """A rank's part of a run, from one barrier to the next.

    Args:
        roles: the rank's roles.
        rollout: number of the rollout at which it starts.

    Attributes:
        rollout: number of the next rollout.
        check: a function that is called often during a rollout; any exception that it raises ends
            the run.
        signum: a function that returns the first stop signal, or None.
    """

    def __init__(self, roles: Roles, rollout: int) -> None:
        assert isinstance(roles.ring, Ring)
        self._roles = roles
        self._plan = roles.plan
        self._ring = roles.ring
        self._barrier_began = time.monotonic()
        self.rollout = rollout
        self.check: Callable[[], None] = lambda: None
        self.signum: Callable[[], int | None] = lambda: None
        self._orders: Mapping[str, Callable[[], Any]] = {
            "rollout": self._run_rollout,
            "non_finite": lambda: snapshot.non_finite(roles, self.rollout),
            "parts": self._parts,
            "chains": lambda: roles.rollouts.with_slot(self._unlearned),
        }
        self._write_parameters(rollout)
        self._open_rollout(rollout, roles.collector.obs)

    def ask(self, order: str) -> list[Any]:
        """Lets all ranks obey an order; returns their answers, in the order of the ranks.

        Only rank 0 asks. The orders are `rollout` (answered with a `Report`), `non_finite` (names
        of values that are not finite), `parts` (states for a checkpoint) and `chains` (digests of
        the shards).
        """
        self._roles.group.broadcast(order)
        return self._roles.group.gather(self._orders[order]())

    def dismiss(self) -> None:
        """Tells the other ranks that no order will follow."""
        self._roles.group.broadcast(None)

    def obey(self) -> None:
        """Obeys the orders of rank 0 until it dismisses this rank."""
        group = self._roles.group
        while order := group.broadcast(None):
            group.gather(self._orders[order]())

    @property
    def _unlearned(self) -> Slot | None:
        return snapshot.unlearned_slot(self._roles, self.rollout)

    def _parts(self) -> dict[str, State]:
        return snapshot.parts_of_rank(self._roles, self.rollout)

    def _run_rollout(self) -> Report:
        """Collects one rollout, makes the update that is due, and opens the next rollout's slot.

        With policy lag, the update learns from the previous rollout, so rollout 0 makes no update.
        Without policy lag, the update learns from this rollout.
        """
        collector, ring = self._roles.collector, self._ring
        watch = LoadMeter(collector.board, collector.num_steppers)
        barrier_s = watch.started_at - self._barrier_began
        logged: dict[str, float] = {}
        exchanged_s = self._roles.group.exchange_s
        collector.begin()
        if self._plan.lag and self.rollout > 0:
            logged = self._learn(self.rollout - 1)
        if self._plan.lag:
            self._write_parameters(self.rollout + 1)
        learner_s = watch.seconds()
        collector.finish(self.check)
        if not self._plan.lag:
            learner_s = -watch.seconds()
            logged = self._learn(self.rollout)
            self._write_parameters(self.rollout + 1)
            learner_s += watch.seconds()
        self._barrier_began = time.monotonic()
        seconds = watch.shares(learner_s) | {"barrier": barrier_s}
        if self._roles.group.size > 1:
            seconds["exchange"] = self._roles.group.exchange_s - exchanged_s
        full = ring.slot(self.rollout)
        self._open_rollout(self.rollout + 1, full.obs[-1])
        return Report(logged, seconds, list(full.episodes()), self.signum(), self._sha256())

    def _sha256(self) -> str:
        """Returns the digest of the parameters and the optimizer, if ranks are to compare them."""
        learner = self._roles.learner
        number, interval = learner.num_updates_done, self._roles.config.learner.check_interval
        if self._roles.group.size == 1 or number == 0 or number % interval:
            return ""
        return digest(learner.parameters()) + digest(learner.optimizer_state())

    def _learn(self, rollout: int) -> dict[str, float]:
        """Makes one update from the full slot of rollout number `rollout`; returns its metrics."""
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
        logged = roles.learner.update(slot, self.check, self._ring.activations(rollout))
        roles.rollouts.add(digest)
        return logged | {"learner/lag": float(lag)}

    def _write_parameters(self, version: int) -> None:
        """Writes the learner's parameters to the store, as version `version`."""
        self._roles.learner.write_parameters(self._roles.store.place(version))

    def _open_rollout(self, rollout: int, obs: Array) -> None:
        """Publishes parameter version `rollout` and opens the slot of rollout number `rollout`.

        Args:
            obs: the rollout's first observations, one for each column.
        """
        self.rollout = rollout
        roles, group = self._roles, self._roles.group
        roles.store.publish(rollout)
        num_steps, width, *draws = self._ring.slot(rollout).noise.shape
        shape = (num_steps, width * group.size, *draws)
        noise = action_noise(roles.config.seed, rollout, shape, roles.spec.actions.kind)
        own = slice(group.rank * width, (group.rank + 1) * width)
        self._ring.begin(rollout, obs, noise[:, own])
