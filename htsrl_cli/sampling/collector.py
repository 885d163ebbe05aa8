"""How executors and actors are hosted: in processes, or inline in one thread.

Both fill the ring's slot with the same role code; only who waits for whom differs.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any, Protocol

import numpy as np

from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import HtsrlError, WorkerError
from htsrl_cli.sampling.actor import Actor, ActorPipes, ActorSetup, run_actor
from htsrl_cli.sampling.executor import EnvState, Executor, ExecutorPipes, run_executor
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.storage import REQUEST_WIDTH, Board, ParameterStore, Ring
from htsrl_cli.workers.process import Pipe, Worker, start_process, start_thread, stop_workers
from htsrl_cli.workers.watcher import Watcher

# How often a wait for the executors asks whether to give up.
CHECK_PERIOD_S = 1.0


class Collector(Protocol):
    """Fills a slot of the ring with an interval of experience.

    Attributes:
        board: what the workers do; executors come first, actors after them.
    """

    board: Board

    def reset(self) -> Array:
        """Begins the first episodes; returns observations [B, *obs_shape]."""

    def set_states(self, states: Sequence[EnvState]) -> Array:
        """Restores the environments; returns observations [B, *obs_shape]."""

    def get_states(self) -> list[EnvState]:
        """The environments' states, only between intervals."""

    def begin(self) -> None:
        """Starts to collect the ring's interval."""

    def finish(self, check: Callable[[], None]) -> None:
        """Returns when the slot is full; `check` is called now and then, and may raise."""

    def check(self) -> None:
        """Raises the error of a worker that has failed."""

    def close(self, gracefully: bool) -> None:
        """Ends whatever runs."""


class ProcessCollector:
    """Executors in processes, actors in processes or threads, connected by pipes."""

    def __init__(
        self, config: TrainConfig, setup: ActorSetup, ring: Ring, store: ParameterStore
    ) -> None:
        actors = config.actors
        self.board = Board(actors.num_executors + actors.num_actors)
        self._ring = ring
        per_executor = actors.num_envs // actors.num_executors
        on_gpu, lockstep = setup.device != "cpu", config.runner.name == "sync"
        requests = Pipe(REQUEST_WIDTH)
        answers = [Pipe() for _ in range(actors.num_executors)]
        self._executors: list[Worker] = []
        self._actors: list[Worker] = []
        try:
            for i in range(actors.num_executors):
                indices = range(i * per_executor, (i + 1) * per_executor)
                self._executors.append(
                    start_process(
                        f"executor {i}",
                        i,
                        config.env.step_timeout_s,
                        run_executor,
                        config.env,
                        indices,
                        config.seed,
                        ring,
                        self.board,
                        ExecutorPipes(requests, answers[i], one_by_one=on_gpu and not lockstep),
                        on_gpu,
                    )
                )
            columns = per_executor * config.env.num_players
            pipes = ActorPipes(requests, answers, columns, lockstep)
            in_thread = actors.host == "thread" or (actors.host == "auto" and on_gpu)
            for i in range(actors.num_actors):
                self._actors.append(
                    (start_thread if in_thread else start_process)(
                        f"actor {i}",
                        actors.num_executors + i,
                        actors.timeout_s,
                        run_actor,
                        setup,
                        ring,
                        store,
                        self.board,
                        pipes,
                    )
                )
        except BaseException:
            stop_workers([*self._executors, *self._actors], gracefully=False)
            raise
        self._watcher = Watcher([*self._executors, *self._actors], self.board)

    def reset(self) -> Array:
        return _stack([obs for part in self._ask("reset") for obs in part], self._ring)

    def set_states(self, states: Sequence[EnvState]) -> Array:
        size = len(states) // len(self._executors)
        parts = [states[i : i + size] for i in range(0, len(states), size)]
        return _stack([obs for part in self._ask("set_states", parts) for obs in part], self._ring)

    def get_states(self) -> list[EnvState]:
        return [state for part in self._ask("get_states") for state in part]

    def _ask(self, command: str, args: Sequence[object] = ()) -> list[list[Any]]:
        """Gives every executor a command, with an argument of its own if there are any."""
        for i, worker in enumerate(self._executors):
            worker.send(command, *args[i : i + 1])
        return [self._watcher.receive(worker, command) for worker in self._executors]

    def begin(self) -> None:
        for worker in self._executors:
            worker.send("run")

    def finish(self, check: Callable[[], None]) -> None:
        waiting = {worker.control: worker for worker in self._executors}
        while waiting:
            connection.wait([*waiting, self._watcher.failed], CHECK_PERIOD_S)
            check()
            for control in [control for control in waiting if control.poll()]:
                self._watcher.receive(waiting.pop(control), "run")

    def check(self) -> None:
        self._watcher.check()

    def close(self, gracefully: bool) -> None:
        self._watcher.stop()
        stop_workers([*self._executors, *self._actors], gracefully)


class InlineCollector:
    """One executor with all environments and one actor, by turns in this thread."""

    def __init__(
        self, config: TrainConfig, setup: ActorSetup, ring: Ring, store: ParameterStore
    ) -> None:
        self.board = Board(2)
        self._ring = ring
        indices = range(config.actors.num_envs)
        self._executor = Executor(config.env, indices, config.seed, ring, self.board, 0)
        self._actor = Actor(setup, ring, store, self.board, 1)

    def reset(self) -> Array:
        return _stack(self._executor.reset(), self._ring)

    def set_states(self, states: Sequence[EnvState]) -> Array:
        return _stack(self._executor.set_states(states), self._ring)

    def get_states(self) -> list[EnvState]:
        return self._executor.get_states()

    def begin(self) -> None:
        """Collecting is all done by `finish`."""

    def finish(self, check: Callable[[], None]) -> None:
        try:
            requests = self._executor.begin()
            while not self._executor.finished:
                check()
                self._actor.serve(requests)
                self.board.enter(0)
                requests = self._executor.advance([c for c, _ in requests])
                self.board.leave(0)
        except HtsrlError:
            raise
        except Exception:
            raise WorkerError(f"executor 0 raised\n{traceback.format_exc().strip()}") from None

    def check(self) -> None:
        """There is no worker beside this thread."""

    def close(self, gracefully: bool) -> None:
        self._executor.close()


def _stack(observations: Sequence[Array], ring: Ring) -> Array:
    """Observations of environments, whatever their number of players, as [B, *obs_shape]."""
    return np.stack(observations).reshape(ring.final_obs.shape)
