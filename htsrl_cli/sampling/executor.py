"""The executor: the role that steps environments and writes the results into the slot.

This module imports numpy and the environments, never torch or hydra. The pipes between executors
and actors carry only column indices and env-step indices. Observations, actions and rewards stay in
the slot, at addresses that depend only on env step and column.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

import numpy as np

from htsrl_cli.config.kinds import AlgoConfig, EnvConfig
from htsrl_cli.envs.base import Env, Replayable, action_mask
from htsrl_cli.envs.registry import make_env
from htsrl_cli.envs.squash import squasher
from htsrl_cli.sampling.requests import Request, encode, final_request
from htsrl_cli.seeding import reset_seed
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.slot import Cells
from htsrl_cli.workers.board import Board
from htsrl_cli.workers.process import Pipe
from htsrl_cli.workers.scheduling import stay_in_background, wake_promptly


@dataclass(frozen=True)
class EnvState:
    """The state of an environment, with the values that its executor keeps for it.

    Attributes:
        data: the environment's own state.
        num_episodes: number of episodes started so far, from which the next reset's seed is
            derived.
        training_return: training return of the current game so far.
    """

    data: bytes
    num_episodes: int
    training_return: float


class Seat:
    """An environment of an executor, with its columns and its progress.

    Attributes:
        columns: columns of the environment's players, in order; see `move`.
        where: the same columns as an array index: an integer for one player, a slice for several.
        t: number of env steps taken in this rollout.
        pending: number of requests not yet answered. After an env step, each column makes one
            request: for its next action or, after the last env step of the rollout, for a value.
            If the env step truncated but did not terminate the episode, each column makes a second
            request, for the value of the episode's last observation.
    """

    def __init__(self, env: Env, index: int, position: int) -> None:
        self.env = env
        self.index = index
        self.move(position)
        self.num_episodes = 0
        self.training_return = 0.0
        self.t = 0
        self.pending = 0

    def move(self, position: int) -> None:
        """Makes the environment fill the columns of environment number `position` of the slot."""
        num_players = self.env.env_spec.num_players
        self.columns = range(position * num_players, (position + 1) * num_players)
        self.where: int | slice = position
        if num_players > 1:
            self.where = slice(self.columns.start, self.columns.stop)


class Executor:
    """A group of environments, each of which is stepped as soon as its actions have arrived.

    Args:
        indices: consecutive indices of the executor's environments, which determine its columns.
        seed: the run's seed, from which every reset's seed is derived.
        worker: index of the executor's line on the board.
        first_env: index of the environment that fills the first columns of the ring.
    """

    def __init__(
        self,
        env: EnvConfig,
        algo: AlgoConfig,
        indices: Sequence[int],
        seed: int,
        ring: Cells,
        board: Board,
        worker: int,
        first_env: int = 0,
    ) -> None:
        self._ring = ring
        self._board = board
        self._worker = worker
        self._seed = seed
        self._seats = []
        for index in indices:
            board.enter(worker)
            self._seats.append(Seat(make_env(env, index), index, index - first_env))
        self._squash = squasher(self._seats[0].env.env_spec.actions, algo)
        self._of_column = {c: seat for seat in self._seats for c in seat.columns}
        self._unfinished = 0
        board.leave(worker)

    @property
    def num_columns(self) -> int:
        """The number of columns that this executor fills."""
        return len(self._of_column)

    @property
    def finished(self) -> bool:
        """True when all columns of this executor are full."""
        return self._unfinished == 0

    def reset(self) -> list[Array]:
        """Starts the first episode of every environment; returns the first observations of each."""
        return [self._reset(seat).copy() for seat in self._seats]

    def get_states(self) -> list[EnvState]:
        """Returns the environments' states, in the order of their indices."""
        return [
            EnvState(seat.env.get_state(), seat.num_episodes, seat.training_return)
            for seat in self._seats
        ]

    def set_states(self, states: Sequence[EnvState]) -> list[Array]:
        """Restores states from `get_states`; returns each environment's current observations."""
        observations = []
        for seat, state in zip(self._seats, states, strict=True):
            self._board.enter(self._worker)
            seat.num_episodes = state.num_episodes
            seat.training_return = state.training_return
            if isinstance(seat.env, Replayable):
                seat.env.on_replayed_step = partial(self._board.enter, self._worker)
            observations.append(np.array(seat.env.set_state(state.data)))
            if begins_again(seat):
                seat.training_return = 0.0
                self._ring.memories[seat.where] = 0.0
        self._board.leave(self._worker)
        return observations

    def begin(self) -> list[Request]:
        """Starts filling the slot of the current rollout; returns each column's first request."""
        self._slot = self._ring.slot(self._ring.rollout)
        self._unfinished = len(self._seats)
        requests: list[Request] = []
        for seat in self._seats:
            seat.pending = 0
            self._ask_first(seat, requests)
        return requests

    def _ask_first(self, seat: Seat, requests: list[Request]) -> None:
        """Adds a seat's requests for row 0, whose observations are in the slot, to `requests`."""
        seat.t = 0
        if self._slot.masks is not None:
            self._slot.masks[0, seat.where] = action_mask(seat.env)
        add_requests(seat, [(c, 0) for c in seat.columns], requests)

    def advance(self, answered: Sequence[int]) -> list[Request]:
        """Steps the environments whose requests are all answered; returns the next requests.

        An environment that has taken all env steps of the rollout is not stepped.

        Args:
            answered: the column of each answered request; a column appears twice if two of its
                requests were answered.
        """
        requests: list[Request] = []
        for c in answered:
            seat = self._of_column[c]
            seat.pending -= 1
            if seat.pending:
                continue
            if seat.t == self._ring.num_steps:
                self._finish(seat)
            else:
                self._step(seat, requests)
        return requests

    def _finish(self, seat: Seat) -> None:
        """Notes that all columns of a seat are full."""
        self._unfinished -= 1

    def close(self) -> None:
        """Closes the environments."""
        for seat in self._seats:
            seat.env.close()

    def _reset(self, seat: Seat) -> Array:
        self._board.enter(self._worker)
        seed = reset_seed(self._seed, seat.index, seat.num_episodes)
        seat.num_episodes += 1
        return seat.env.reset(seed=seed)[0]

    def _step(self, seat: Seat, requests: list[Request]) -> None:
        t, where, slot = seat.t, seat.where, self._slot
        self._board.enter(self._worker)
        action = slot.actions[t, where]
        if self._squash is not None:
            action = self._squash(action)
        obs, reward, terminated, truncated, info = seat.env.step(action)
        slot.rewards[t, where] = reward
        slot.terminated[t, where] = terminated
        slot.truncated[t, where] = truncated
        slot.final_values[t, where] = 0.0
        self._record_episode(seat, reward, info.get("episode"))
        if truncated and not terminated:
            self._ring.final_obs[where] = obs
            self._ring.final_memories[where] = self._ring.memories[where]
            add_requests(seat, [final_request(c, t) for c in seat.columns], requests)
        if terminated or truncated:
            obs = self._reset(seat)
            self._ring.memories[where] = 0.0
        slot.obs[t + 1, where] = obs
        if slot.masks is not None:
            slot.masks[t + 1, where] = action_mask(seat.env)
        seat.t = t + 1
        add_requests(seat, [(c, t + 1) for c in seat.columns], requests)

    def _record_episode(
        self, seat: Seat, reward: float | Array, ended: dict[str, float] | None
    ) -> None:
        """Adds the reward to the training return; if the game has ended, writes its results.

        With several players, the mean of their rewards is added. The results are written to the
        environment's first column. Cells of this env step that get no result are set to 0.
        """
        t, where, slot = seat.t, seat.where, self._slot
        seat.training_return += reward if isinstance(reward, float) else float(reward.mean())
        slot.episode_returns[t, where] = 0.0
        slot.training_returns[t, where] = 0.0
        slot.episode_lengths[t, where] = 0
        if ended:
            first = seat.columns[0]
            slot.episode_returns[t, first] = ended["r"]
            slot.training_returns[t, first] = seat.training_return
            slot.episode_lengths[t, first] = ended["l"]
            seat.training_return = 0.0


def begins_again(seat: Seat) -> bool:
    """Returns True if the environment could not continue its saved episode, and began it again."""
    return isinstance(seat.env, Replayable) and seat.env.begins_again


def add_requests(seat: Seat, asked: list[Request], requests: list[Request]) -> None:
    """Adds `asked`, the requests of an environment, to `requests`; counts them as pending."""
    seat.pending += len(asked)
    requests += asked


@dataclass(frozen=True)
class ExecutorSetup:
    """The arguments of an executor process.

    Attributes:
        env: the configuration of the executor's environments.
        algo: the configuration of the algorithm, which decides how actions are squashed.
        indices: consecutive indices of the executor's environments, which determine its columns.
        first_env: index of the environment that fills the first columns of the ring.
        seed: the run's seed, from which every reset's seed is derived.
        ring: the slots, from which the executor reads actions and to which it writes observations
            and rewards.
        board: the load counters and heartbeats.
        requests: the pipe through which requests reach whichever actor is free.
        answers: the pipe through which actors send the indices of the columns they have served.
        one_by_one: True to send an environment's requests as soon as it has been stepped. False to
            step all environments whose answers arrived together, and then send all their requests.
            True starts passes earlier, but with fewer rows. This pays off if actors are on a GPU,
            where passes take hardly any CPU time.
        in_background: True to run at a low priority, so that actors on a GPU get a core as soon as
            they need it.
    """

    env: EnvConfig
    algo: AlgoConfig
    indices: Sequence[int]
    first_env: int
    seed: int
    ring: Cells
    board: Board
    requests: Pipe
    answers: Pipe
    one_by_one: bool
    in_background: bool


def run_executor(control: Connection, worker: int, setup: ExecutorSetup) -> None:
    """Runs an executor process, which obeys the commands on `control` until `stop` arrives."""
    if setup.in_background:
        stay_in_background()
    else:
        wake_promptly()
    board = setup.board
    executor = Executor(
        setup.env,
        setup.algo,
        setup.indices,
        setup.seed,
        setup.ring,
        board,
        worker,
        setup.first_env,
    )
    try:
        while True:
            command, *args = control.recv()
            if command == "stop":
                return
            if command == "run":
                if not _run_rollout(executor, control, worker, setup):
                    return
                control.send(("run",))
            else:
                board.enter(worker)
                control.send((command, getattr(executor, command)(*args)))
                board.leave(worker)
    finally:
        executor.close()


def _run_rollout(
    executor: Executor, control: Connection, worker: int, setup: ExecutorSetup
) -> bool:
    """Steps environments until their columns are full; returns False if told to stop earlier."""
    board, answers = setup.board, setup.answers
    poll = select.poll()
    poll.register(answers, select.POLLIN)
    poll.register(control, select.POLLIN)
    _ask(executor.begin(), setup)
    while True:
        board.leave(worker)
        if executor.finished:
            return True
        ready = {fd for fd, _ in poll.poll()}
        if control.fileno() in ready:
            return False
        board.enter(worker)
        answered = answers.read(2 * executor.num_columns)
        together = 1 if setup.one_by_one else max(1, len(answered))
        for start in range(0, len(answered), together):
            _ask(executor.advance(answered[start : start + together]), setup)


def _ask(requests: list[Request], setup: ExecutorSetup) -> None:
    if requests:
        setup.requests.write(encode(requests))
