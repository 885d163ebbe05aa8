"""The collector of `runner=async`: executors and actors that do not wait for updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

from htsrl_cli.checkpoints.state import State
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.sampling.async_actor import AsyncActorSetup, run_async_actor
from htsrl_cli.sampling.async_executor import AsyncExecutorSetup, Start, run_async_executor
from htsrl_cli.sampling.collector import CHECK_PERIOD_S, ProcessCollector
from htsrl_cli.sampling.executor import EnvState
from htsrl_cli.sampling.inference import InferenceSetup
from htsrl_cli.sampling.unrolls import UnrollQueue
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.workers.process import Pipe, start_process


class AsyncCollector(ProcessCollector):
    """A collector whose environments fill the buffers of a queue.

    Args:
        schedule: the schedule file to replay; None to run freely.
    """

    def __init__(
        self,
        config: TrainConfig,
        inference: InferenceSetup,
        queue: UnrollQueue,
        store: ParameterStore,
        schedule: Path | None,
    ) -> None:
        self._queue = queue
        self._schedule = schedule
        # The function that `take` was last called with.
        self._check: Callable[[], None] = lambda: None
        self._published = [Pipe() for _ in range(config.actors.num_actors if schedule else 0)]
        super().__init__(config, inference, queue, store)

    def _start_executors(
        self,
        config: TrainConfig,
        inference: InferenceSetup,
        requests: Pipe,
        answers: Sequence[Pipe],
    ) -> None:
        for i, (share, pipe) in enumerate(zip(self._shares, answers, strict=True)):
            setup = AsyncExecutorSetup(
                env=config.env,
                algo=config.algo,
                indices=share,
                seed=config.seed,
                queue=self._queue,
                board=self.board,
                requests=requests,
                answers=pipe,
                schedule=self._schedule,
            )
            name, timeout_s = f"executor {i}", config.env.step_timeout_s
            self._executors.append(start_process(name, i, timeout_s, run_async_executor, setup))

    def _start_actors(
        self,
        config: TrainConfig,
        inference: InferenceSetup,
        store: ParameterStore,
        requests: Pipe,
        answers: Sequence[Pipe],
    ) -> None:
        setup = AsyncActorSetup(
            inference=inference,
            queue=self._queue,
            store=store,
            board=self.board,
            requests=requests,
            answers=answers,
            published=self._published,
        )
        for i in range(config.actors.num_actors):
            name, timeout_s = f"actor {i}", config.actors.timeout_s
            start = self._starter(config, inference)
            self._actors.append(start(name, len(answers) + i, timeout_s, run_async_actor, setup))

    def reset(self) -> None:
        """Starts the first episode of every environment and sets `obs`."""
        self.obs = np.stack([obs for part in self._ask("reset") for obs in part])

    def state(self) -> State:
        """Returns the beginning of each environment's first unroll that no update has used."""
        starts: list[Start] = [start for part in self._ask("get_starts") for start in part]
        arrays = {str(i): np.frombuffer(s.state.data, np.uint8) for i, s in enumerate(starts)}
        arrays["obs"] = np.stack([start.obs for start in starts])
        if self._queue.memories.size:
            arrays["memories"] = np.stack([start.memories for start in starts])
        values = {
            "numbers": [start.number for start in starts],
            "num_episodes": [start.state.num_episodes for start in starts],
            "training_returns": [start.state.training_return for start in starts],
        }
        return State(arrays, values)

    def load_state(self, state: State) -> None:
        """Restores every environment to the beginning of an unroll."""
        figures = zip(
            *(state.values[k] for k in ("numbers", "num_episodes", "training_returns")), strict=True
        )
        obs = state.arrays["obs"]
        no_memories = np.zeros((len(obs), self._queue.num_players, 0), np.float32)
        memories = state.arrays.get("memories", no_memories)
        starts = [
            Start(number, EnvState(state.arrays[str(i)].tobytes(), *counted), obs[i], memories[i])
            for i, (number, *counted) in enumerate(figures)
        ]
        self._queue.consumed[:] = state.values["numbers"]
        restored = self._ask("set_starts", [[starts[i] for i in share] for share in self._shares])
        self.obs = np.stack([obs for part in restored for obs in part])

    def _ask(self, command: str, args: Sequence[object] = ()) -> list[list[Any]]:
        """Sends `command` to every executor and returns the answers; see `ProcessCollector`.

        An environment may be in a long env step, so the wait ends when a stop signal's grace ends.
        """
        for i, worker in enumerate(self._executors):
            worker.send(command, *args[i : i + 1])
        answers = []
        for worker in self._executors:
            waited_for = [worker.control, self._watcher.failed]
            while not connection.wait(waited_for, CHECK_PERIOD_S):
                self._check()
            answers.append(self._watcher.receive(worker, command))
        return answers

    def begin(self) -> None:
        """Lets all environments run, and gives them all buffers."""
        self._ask("run")
        self._queue.release(range(len(self._queue.owners)))

    def take(self, check: Callable[[], None]) -> list[int]:
        """Waits for full buffers; returns their numbers in order of arrival.

        Args:
            check: see `Collector.finish`.

        Raises:
            HtsrlError: a worker failed.
        """
        self._check = check
        try:
            while True:
                buffers = self._queue.full.read(len(self._queue.owners))
                if buffers:
                    return buffers
                for worker in self._executors:
                    worker.owes = True
                connection.wait([self._queue.full.fileno(), self._watcher.failed], CHECK_PERIOD_S)
                check()
        finally:
            # Environments may also wait because the learner is slow, which is no fault of theirs.
            for worker in self._executors:
                worker.owes = False

    def published(self, version: int) -> None:
        """Tells the actors of a replay that a version has been published."""
        for pipe in self._published:
            pipe.write([version])
