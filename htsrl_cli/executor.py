"""The executor: owns environments, steps them, and writes what they say into the slot.

A process that imports numpy and its environments, never torch or hydra. Columns that are ready
and columns that were answered travel as numbers through pipes; observations, actions and rewards
stay where they are, in the slot, at an address that depends on time step and column only.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from htsrl_cli.config import EnvConfig
from htsrl_cli.envs import Env, make_env
from htsrl_cli.memory import Array
from htsrl_cli.seeding import reset_seed
from htsrl_cli.storage import Board, Request, Ring
from htsrl_cli.workers import Pipe


@dataclass(frozen=True)
class EnvState:
    """All that decides an environment's future: its own state, and the episodes it has begun."""

    data: bytes
    num_episodes: int


class Executor:
    """Environments of consecutive columns, stepped whenever their actions are in.

    Args:
        columns: the columns that its environments fill, in order.
        seed: the run's seed, from which every reset's seed follows.
        worker: its cell on the board.
    """

    def __init__(
        self,
        env: EnvConfig,
        columns: Sequence[int],
        seed: int,
        ring: Ring,
        board: Board,
        worker: int,
    ) -> None:
        self._ring = ring
        self._board = board
        self._worker = worker
        self._seed = seed
        board.enter(worker)
        self._envs: dict[int, Env] = {c: make_env(env, c) for c in columns}
        self._num_episodes = dict.fromkeys(columns, 0)
        self._t = dict.fromkeys(columns, 0)
        # Requests without an answer; a truncation makes two at a time.
        self._pending = dict.fromkeys(columns, 0)
        self._unfinished = 0
        board.leave(worker)

    @property
    def num_columns(self) -> int:
        """Columns that this executor fills."""
        return len(self._envs)

    @property
    def finished(self) -> bool:
        """All columns have filled their part of the slot."""
        return self._unfinished == 0

    def reset(self) -> list[Array]:
        """Begins the first episode of every environment; returns their observations."""
        return [self._reset(c).copy() for c in self._envs]

    def get_states(self) -> list[EnvState]:
        """The environments' states, in order of column."""
        return [EnvState(env.get_state(), self._num_episodes[c]) for c, env in self._envs.items()]

    def set_states(self, states: Sequence[EnvState]) -> list[Array]:
        """Restores `get_states`; returns the observations."""
        observations = []
        for (c, env), state in zip(self._envs.items(), states, strict=True):
            self._board.enter(self._worker)
            self._num_episodes[c] = state.num_episodes
            observations.append(np.array(env.set_state(state.data)))
        self._board.leave(self._worker)
        return observations

    def begin(self) -> list[Request]:
        """Starts the interval that the ring names; returns the first requests."""
        self._slot = self._ring.slot(self._ring.interval)
        self._unfinished = len(self._envs)
        self._t = dict.fromkeys(self._envs, 0)
        self._pending = dict.fromkeys(self._envs, 1)
        return [(c, 0) for c in self._envs]

    def advance(self, answered: Sequence[int]) -> list[Request]:
        """Goes on with columns of which a request was answered; returns the next requests."""
        requests: list[Request] = []
        for c in answered:
            self._pending[c] -= 1
            if self._pending[c]:
                continue
            if self._t[c] == self._ring.num_steps:
                self._unfinished -= 1
            else:
                self._step(c, requests)
        return requests

    def close(self) -> None:
        for env in self._envs.values():
            env.close()

    def _reset(self, c: int) -> Array:
        self._board.enter(self._worker)
        seed = reset_seed(self._seed, c, self._num_episodes[c])
        self._num_episodes[c] += 1
        return self._envs[c].reset(seed=seed)[0]

    def _step(self, c: int, requests: list[Request]) -> None:
        t, slot = self._t[c], self._slot
        self._board.enter(self._worker)
        obs, reward, terminated, truncated, info = self._envs[c].step(slot.actions[t, c])
        slot.rewards[t, c] = reward
        slot.terminated[t, c] = terminated
        slot.truncated[t, c] = truncated
        slot.final_values[t, c] = 0.0
        episode = info.get("episode")
        slot.episode_returns[t, c] = episode["r"] if episode else 0.0
        slot.episode_lengths[t, c] = episode["l"] if episode else 0
        if truncated and not terminated:
            self._ring.final_obs[c] = obs
            self._request(c, -1 - t, requests)
        if terminated or truncated:
            obs = self._reset(c)
        slot.obs[t + 1, c] = obs
        self._t[c] = t + 1
        self._request(c, t + 1, requests)

    def _request(self, c: int, t: int, requests: list[Request]) -> None:
        self._pending[c] += 1
        requests.append((c, t))


@dataclass(frozen=True)
class ExecutorPipes:
    """Columns that are ready, to whichever actor is free; columns that were answered, back."""

    requests: Pipe
    answers: Pipe


def run_executor(
    control: Connection,
    worker: int,
    env: EnvConfig,
    columns: Sequence[int],
    seed: int,
    ring: Ring,
    board: Board,
    pipes: ExecutorPipes,
) -> None:
    """An executor process: does what the runner says on `control` until that says `stop`."""
    executor = Executor(env, columns, seed, ring, board, worker)
    try:
        while True:
            command, *args = control.recv()
            if command == "stop":
                return
            if command == "run":
                if not _run_interval(executor, control, worker, board, pipes):
                    return
                control.send(("run",))
            else:
                board.enter(worker)
                control.send((command, getattr(executor, command)(*args)))
                board.leave(worker)
    finally:
        executor.close()


def _run_interval(
    executor: Executor, control: Connection, worker: int, board: Board, pipes: ExecutorPipes
) -> bool:
    """Steps until the slot is full; False when the runner says stop before that."""
    poll = select.poll()
    poll.register(pipes.answers, select.POLLIN)
    poll.register(control, select.POLLIN)
    requests = executor.begin()
    while True:
        if requests:
            pipes.requests.write([number for request in requests for number in request])
        board.leave(worker)
        if executor.finished:
            return True
        ready = {fd for fd, _ in poll.poll()}
        if control.fileno() in ready:
            return False
        board.enter(worker)
        requests = executor.advance(pipes.answers.read(2 * executor.num_columns))
