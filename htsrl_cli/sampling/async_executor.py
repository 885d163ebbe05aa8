"""The executor of `runner=async`: each environment fills one buffer of the queue after the other.

This module imports neither torch nor hydra.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from htsrl_cli.config.kinds import AlgoConfig, EnvConfig
from htsrl_cli.sampling.executor import EnvState, Executor, Seat, begins_again
from htsrl_cli.sampling.requests import Request, encode
from htsrl_cli.sampling.schedule import Schedule, from_runs
from htsrl_cli.sampling.unrolls import UnrollQueue
from htsrl_cli.seeding import Purpose, draw_noise, generator
from htsrl_cli.storage.memory import Array
from htsrl_cli.workers.board import Board
from htsrl_cli.workers.process import Pipe
from htsrl_cli.workers.scheduling import wake_promptly


class Start(NamedTuple):
    """The beginning of an unroll, from which a resumed run collects the unroll again.

    Attributes:
        number: number of the unroll among the environment's unrolls.
        state: the environment's state.
        obs: the environment's observations, one for each player.
        memories: the memory states of the P players, float32 [P, S].
    """

    number: int
    state: EnvState
    obs: Array
    memories: Array


class AsyncExecutor(Executor):
    """A group of environments that fill buffers independently of each other.

    Args:
        schedule: the schedule to replay; None to run freely.

    See `Executor` for the others.
    """

    def __init__(
        self,
        env: EnvConfig,
        algo: AlgoConfig,
        indices: Sequence[int],
        seed: int,
        queue: UnrollQueue,
        board: Board,
        worker: int,
        schedule: Schedule | None,
    ) -> None:
        super().__init__(env, algo, indices, seed, queue, board, worker)
        self._queue = queue
        self._slot = queue.slot_of_buffers
        self._of_column = {}
        self._unrolls = schedule.of_envs(indices) if schedule else None
        self._obs: dict[int, Array] = {}
        self._memories = {
            index: np.zeros_like(queue.memories[queue.columns(0)]) for index in indices
        }
        self._numbers = dict.fromkeys(indices, 0)
        self._starts: dict[int, deque[Start]] = {index: deque() for index in indices}
        # Seats without a buffer, in the order in which they became idle.
        self._idle: deque[Seat] = deque()

    @property
    def num_idle(self) -> int:
        """The number of environments that wait for a buffer."""
        return len(self._idle)

    def reset(self) -> list[Array]:
        """Starts the first episode of every environment; returns the first observations of each."""
        observations = super().reset()
        self._take_places(observations)
        return observations

    def set_starts(self, starts: Sequence[Start]) -> list[Array]:
        """Restores every environment to the beginning of an unroll; returns its observations."""
        observations = self.set_states([start.state for start in starts])
        for seat, start in zip(self._seats, starts, strict=True):
            self._numbers[seat.index] = start.number
            forgets = begins_again(seat)
            self._memories[seat.index] = (
                np.zeros_like(start.memories) if forgets else start.memories
            )
        self._take_places(observations)
        return observations

    def get_starts(self) -> list[Start]:
        """Returns the beginning of each environment's first unroll that no update has used."""
        return [self._first_start(seat) for seat in self._seats]

    def open(self, buffers: Sequence[int]) -> list[Request]:
        """Lets idle environments begin an unroll in these free buffers; returns their requests."""
        requests: list[Request] = []
        for buffer in buffers:
            self._open(self._idle.popleft(), buffer, requests)
        return requests

    def _take_places(self, observations: Sequence[Array]) -> None:
        for seat, obs in zip(self._seats, observations, strict=True):
            self._obs[seat.index] = obs
            self._wait(seat)

    def _wait(self, seat: Seat) -> None:
        """Makes a seat wait for a buffer, unless a replay has no further unroll of it."""
        if self._unrolls is None or (seat.index, self._numbers[seat.index]) in self._unrolls:
            self._idle.append(seat)

    def _first_start(self, seat: Seat) -> Start:
        number = int(self._queue.consumed[seat.index])
        for start in self._starts[seat.index]:
            if start.number == number:
                return start
        assert number == self._numbers[seat.index], (number, self._numbers[seat.index])
        return self._start(seat)

    def _start(self, seat: Seat) -> Start:
        state = EnvState(seat.env.get_state(), seat.num_episodes, seat.training_return)
        env = seat.index
        return Start(self._numbers[env], state, self._obs[env], self._memories[env])

    def _open(self, seat: Seat, buffer: int, requests: list[Request]) -> None:
        env, queue = seat.index, self._queue
        self._board.enter(self._worker)
        starts = self._starts[env]
        while starts and starts[0].number < queue.consumed[env]:
            starts.popleft()
        starts.append(self._start(seat))
        number = self._numbers[env]
        seat.move(buffer)
        columns = queue.columns(buffer)
        self._of_column.update(dict.fromkeys(seat.columns, seat))
        queue.owners[buffer, :3] = env, number, self._worker
        noise = self._slot.noise[:, columns]
        rng = generator(self._seed, Purpose.UNROLL_ACTIONS, env, number)
        noise[:] = draw_noise(rng, noise.shape, seat.env.env_spec.actions.kind)
        if self._unrolls is not None:
            unroll = self._unrolls[env, number]
            for player, c in enumerate(seat.columns):
                queue.wanted[:, c] = from_runs(unroll.versions[player], queue.num_steps + 1)
            for t, player, version in unroll.finals:
                queue.wanted_finals[t, seat.columns[player]] = version
        self._slot.obs[0, seat.where] = self._obs[env]
        queue.memories[columns] = self._memories[env]
        if self._slot.memories is not None:
            self._slot.memories[0, columns] = self._memories[env]
        self._ask_first(seat, requests)

    def _finish(self, seat: Seat) -> None:
        """Hands over the full buffer of a seat."""
        env = seat.index
        self._obs[env] = self._slot.obs[seat.t, seat.where].copy()
        self._numbers[env] += 1
        buffer = seat.columns.start // self._queue.num_players
        self._memories[env] = self._queue.memories[self._queue.columns(buffer)].copy()
        self._queue.owners[buffer, 3] = self._queue.published[0]
        self._queue.full.write([buffer])
        self._wait(seat)


@dataclass(frozen=True)
class AsyncExecutorSetup:
    """The arguments of an executor process of `runner=async`; see `ExecutorSetup`.

    Attributes:
        schedule: the schedule file to replay; None to run freely.
    """

    env: EnvConfig
    algo: AlgoConfig
    indices: Sequence[int]
    seed: int
    queue: UnrollQueue
    board: Board
    requests: Pipe
    answers: Pipe
    schedule: Path | None


def run_async_executor(control: Connection, worker: int, setup: AsyncExecutorSetup) -> None:
    """Runs an executor process until `stop` arrives.

    The command `run` lets the environments run from then on; the answer comes at once.
    """
    wake_promptly()
    board, queue = setup.board, setup.queue
    schedule = Schedule.load(setup.schedule) if setup.schedule else None
    executor = AsyncExecutor(
        setup.env, setup.algo, setup.indices, setup.seed, queue, board, worker, schedule
    )
    poll = select.poll()
    for source in (control, setup.answers):
        poll.register(source, select.POLLIN)
    is_running = listens = False
    try:
        while True:
            if listens != (is_running and executor.num_idle > 0):
                listens = not listens
                if listens:
                    poll.register(queue.free, select.POLLIN)
                else:
                    poll.unregister(queue.free)
            ready = {fd for fd, _ in poll.poll()}
            board.enter(worker)
            requests: list[Request] = []
            if control.fileno() in ready:
                command, *args = control.recv()
                if command == "stop":
                    return
                is_running |= command == "run"
                answer = None if command == "run" else getattr(executor, command)(*args)
                control.send((command, answer))
            if setup.answers.fileno() in ready:
                requests += executor.advance(setup.answers.read(2 * queue.num_columns))
            if queue.free.fileno() in ready:
                requests += executor.open(queue.free.read(executor.num_idle))
            if requests:
                setup.requests.write(encode(requests))
            board.leave(worker)
    finally:
        executor.close()
