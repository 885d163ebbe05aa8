"""Collectors: hosts of executors and actors, in separate workers or inline in one thread.

Both kinds run the same executor and actor code to fill a slot. They differ only in how executors
and actors wait for each other.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any, Protocol

import numpy as np

from htsrl_cli.checkpoints.state import State
from htsrl_cli.config.plan import env_shares
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import HtsrlError, WorkerError
from htsrl_cli.sampling.actor import Actor, ActorSetup, run_actor
from htsrl_cli.sampling.executor import EnvState, Executor, ExecutorSetup, run_executor
from htsrl_cli.sampling.inference import InferenceSetup
from htsrl_cli.sampling.requests import WIDTH
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.storage.slot import Cells
from htsrl_cli.workers.board import Board
from htsrl_cli.workers.process import Pipe, Worker, start_process, start_thread, stop_workers
from htsrl_cli.workers.watcher import Watcher

# Maximum seconds between two calls of `check` while waiting for executors.
CHECK_PERIOD_S = 1.0


class Collector(Protocol):
    """The host of executors and actors, which fills a slot with one rollout.

    Attributes:
        board: the workers' load counters and heartbeats. The first lines belong to executors, the
            other lines to actors.
        num_steppers: number of executors.
        obs: [B, *obs_shape], with B columns; the environments' observations at the last call of
            `reset` or `load_state`, not updated by rollouts.
    """

    board: Board
    num_steppers: int
    obs: Array

    def reset(self) -> None:
        """Starts the first episode of every environment and sets `obs`."""

    def state(self) -> State:
        """Returns the environments' states and observations; call it at a barrier only."""

    def load_state(self, state: State) -> None:
        """Restores the environments and sets `obs`.

        The caller compares `obs` with the saved observations.
        """

    def begin(self) -> None:
        """Starts filling the slot that is open in the ring."""

    def finish(self, check: Callable[[], None]) -> None:
        """Blocks until the slot is full.

        Args:
            check: a function that is called repeatedly while waiting, usually once a second or more
                often. Any exception that it raises ends the wait.

        Raises:
            HtsrlError: a worker failed.
        """

    def check(self) -> None:
        """Raises the error of a worker that has failed or hangs, if there is one."""

    def close(self, gracefully: bool) -> None:
        """Stops all workers and closes the environments.

        Args:
            gracefully: True to ask workers to stop before killing them; see `stop_workers`.
        """


class ProcessCollector:
    """A collector with executors in processes, and actors in processes or threads.

    Args:
        first_env: index of the first environment among those of all ranks; the collector steps
            `actors.num_envs` environments from this one on.
    """

    def __init__(
        self,
        config: TrainConfig,
        inference: InferenceSetup,
        ring: Cells,
        store: ParameterStore,
        first_env: int = 0,
    ) -> None:
        self._first_env = first_env
        actors = config.actors
        self.num_steppers = actors.num_executors
        self.board = Board(actors.num_executors + actors.num_actors)
        self._ring = ring
        self._shares = env_shares(actors.num_envs, actors.num_executors)
        self._executors: list[Worker] = []
        self._actors: list[Worker] = []
        requests = Pipe(WIDTH)
        answers = [Pipe() for _ in range(actors.num_executors)]
        try:
            self._start_executors(config, inference, requests, answers)
            self._start_actors(config, inference, store, requests, answers)
        except BaseException:
            stop_workers([*self._executors, *self._actors], gracefully=False)
            raise
        self._watcher = Watcher([*self._executors, *self._actors], self.board)

    def _start_executors(
        self,
        config: TrainConfig,
        inference: InferenceSetup,
        requests: Pipe,
        answers: Sequence[Pipe],
    ) -> None:
        on_gpu, lockstep = inference.device != "cpu", config.runner.schedule.lockstep
        for i, (share, pipe) in enumerate(zip(self._shares, answers, strict=True)):
            setup = ExecutorSetup(
                env=config.env,
                algo=config.algo,
                indices=[self._first_env + i for i in share],
                first_env=self._first_env,
                seed=config.seed,
                ring=self._ring,
                board=self.board,
                requests=requests,
                answers=pipe,
                one_by_one=on_gpu and not lockstep,
                in_background=on_gpu,
            )
            name, timeout_s = f"executor {i}", config.env.step_timeout_s
            self._executors.append(start_process(name, i, timeout_s, run_executor, setup))

    def _start_actors(
        self,
        config: TrainConfig,
        inference: InferenceSetup,
        store: ParameterStore,
        requests: Pipe,
        answers: Sequence[Pipe],
    ) -> None:
        num_players = self._ring.num_columns // config.actors.num_envs
        sizes = [len(share) * num_players for share in self._shares]
        setup = ActorSetup(
            inference=inference,
            ring=self._ring,
            store=store,
            board=self.board,
            requests=requests,
            answers=answers,
            executor_of=np.repeat(range(len(sizes)), sizes).tolist(),
            lockstep=config.runner.schedule.lockstep,
        )
        start = self._starter(config, inference)
        for i in range(config.actors.num_actors):
            name, timeout_s = f"actor {i}", config.actors.timeout_s
            self._actors.append(start(name, len(answers) + i, timeout_s, run_actor, setup))

    @staticmethod
    def _starter(config: TrainConfig, inference: InferenceSetup) -> Callable[..., Worker]:
        """Returns the function that starts an actor, as a process or a thread."""
        host, on_gpu = config.actors.host, inference.device != "cpu"
        return start_thread if host == "thread" or (host == "auto" and on_gpu) else start_process

    def reset(self) -> None:
        self.obs = _stack([obs for part in self._ask("reset") for obs in part], self._ring)

    def state(self) -> State:
        return _pack([state for part in self._ask("get_states") for state in part], self._ring)

    def load_state(self, state: State) -> None:
        states = _unpack(state, self._ring)
        parts = [[states[i] for i in share] for share in self._shares]
        restored = self._ask("set_states", parts)
        self.obs = _stack([obs for part in restored for obs in part], self._ring)

    def _ask(self, command: str, args: Sequence[object] = ()) -> list[list[Any]]:
        """Sends `command` to every executor and returns the answers.

        Args:
            args: one argument for each executor, sent with the command; empty for no arguments.

        Returns:
            A list for each executor, which contains one result for each of its environments.
        """
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
    """A collector with one executor and one actor, which take turns in the main thread."""

    num_steppers = 1

    def __init__(
        self,
        config: TrainConfig,
        inference: InferenceSetup,
        ring: Cells,
        store: ParameterStore,
        first_env: int = 0,
    ) -> None:
        self.board = Board(2)
        self._ring = ring
        indices = range(first_env, first_env + config.actors.num_envs)
        self._executor = Executor(
            config.env, config.algo, indices, config.seed, ring, self.board, 0, first_env
        )
        self._actor = Actor(inference, ring, store, self.board, 1)

    def reset(self) -> None:
        self.obs = _stack(self._executor.reset(), self._ring)

    def state(self) -> State:
        return _pack(self._executor.get_states(), self._ring)

    def load_state(self, state: State) -> None:
        self.obs = _stack(self._executor.set_states(_unpack(state, self._ring)), self._ring)

    def begin(self) -> None:
        """Does nothing: `finish` does all the work."""

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
            raise WorkerError(f"main process raised\n{traceback.format_exc().strip()}") from None

    def check(self) -> None:
        """Does nothing: errors are raised where they occur, in the main thread."""

    def close(self, gracefully: bool) -> None:
        self._executor.close()


def _stack(observations: Sequence[Array], ring: Cells) -> Array:
    """Returns the environments' observations as one array [B, *obs_shape], with B columns."""
    return np.stack(observations).reshape(ring.final_obs.shape)


def _pack(states: Sequence[EnvState], ring: Cells) -> State:
    """Packs environment states, in order, and the open slot's first observations into a `State`.

    If the policies have a memory, the state also has the memory states before these observations.
    """
    arrays = {str(i): np.frombuffer(state.data, np.uint8) for i, state in enumerate(states)}
    values = {
        "num_episodes": [state.num_episodes for state in states],
        "training_returns": [state.training_return for state in states],
    }
    slot = ring.slot(ring.rollout)
    arrays["obs"] = slot.obs[0]
    if slot.memories is not None:
        arrays["memories"] = slot.memories[0]
    return State(arrays, values)


def _unpack(state: State, ring: Cells) -> list[EnvState]:
    """Returns the environment states from a `State` that `_pack` made; restores memory states."""
    if ring.memories.size:
        ring.memories[:] = state.arrays["memories"]
    counted = zip(state.values["num_episodes"], state.values["training_returns"], strict=True)
    return [EnvState(state.arrays[str(i)].tobytes(), *of) for i, of in enumerate(counted)]
