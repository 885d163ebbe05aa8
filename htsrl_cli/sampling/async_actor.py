"""The actor of `runner=async`, which serves every pass with the newest parameters."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch

from htsrl_cli.networks.device import set_up_torch, settle_on
from htsrl_cli.sampling.actor import Actor
from htsrl_cli.sampling.inference import InferenceSetup
from htsrl_cli.sampling.requests import Request, decode, is_final, truncating_step
from htsrl_cli.sampling.unrolls import UnrollQueue
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.workers.board import Board
from htsrl_cli.workers.process import Pipe
from htsrl_cli.workers.scheduling import wake_promptly


class AsyncActor(Actor):
    """A server of requests, which the learner does not wait for. See `Actor`."""

    def __init__(
        self,
        setup: InferenceSetup,
        queue: UnrollQueue,
        store: ParameterStore,
        board: Board,
        worker: int,
    ) -> None:
        super().__init__(setup, queue, store, board, worker)
        self._queue = queue
        self._wanted: int | None = None

    def serve_as_wanted(self, requests: Sequence[Request]) -> list[Request]:
        """Serves requests of a replay, each with the version that the schedule wants.

        Returns:
            The requests that were served. The others need a version not yet published.
        """
        versions = [self._version_for(request) for request in requests]
        published = self._store.version
        served: list[Request] = []
        for version in sorted({v for v in versions if v <= published}):
            own = [r for r, v in zip(requests, versions, strict=True) if v == version]
            self._wanted = version
            self.serve(own)
            served += own
        return served

    def _version_for(self, request: Request) -> int:
        c, t = request
        if is_final(t):
            return int(self._queue.wanted_finals[truncating_step(t), c])
        return int(self._queue.wanted[t, c])

    def _load_parameters(self) -> None:
        """Loads the newest version, or the version that a replay wants.

        The learner may publish further versions meanwhile. It overwrites the place from which this
        actor reads only after it has published all the other places; in that case, the actor reads
        again. System calls keep the processor from moving reads across the checks.
        """
        while True:
            version = self._store.version if self._wanted is None else self._wanted
            if version == self._version:
                return
            os.getppid()
            self._inference.load(self._store.place(version))
            os.getppid()
            if self._store.version <= version + self._store.num_places - 2:
                self._version = version
                return

    def _home(self, column: int) -> int:
        """Returns the column of the environment that fills the buffer, whichever buffer it is."""
        buffer, player = divmod(column, self._queue.num_players)
        return int(self._queue.owners[buffer, 0]) * self._queue.num_players + player

    def _serve_pass(self, policy: int, rows: Array, requests: Sequence[Request]) -> None:
        super()._serve_pass(policy, rows, requests)
        columns, steps = np.array(requests).T
        final = is_final(steps)
        self._queue.final_versions[truncating_step(steps[final]), columns[final]] = self._version


@dataclass(frozen=True)
class AsyncActorSetup:
    """The arguments of an actor's process or thread of `runner=async`; see `ActorSetup`.

    Attributes:
        published: a pipe for each actor, which wakes it when a replay has published a version;
            empty if the run is not a replay.
    """

    inference: InferenceSetup
    queue: UnrollQueue
    store: ParameterStore
    board: Board
    requests: Pipe
    answers: Sequence[Pipe]
    published: Sequence[Pipe]


def run_async_actor(control: Connection, worker: int, setup: AsyncActorSetup) -> None:
    """Runs an actor in the current process or thread until a message arrives on `control`."""
    wake_promptly()
    set_up_torch()
    settle_on(torch.device(setup.inference.device))
    queue = setup.queue
    actor = AsyncActor(setup.inference, queue, setup.store, setup.board, worker)
    wake = setup.published[worker - len(setup.answers)] if setup.published else None
    poll = select.poll()
    poll.register(setup.requests, select.POLLIN)
    poll.register(control, select.POLLIN)
    if wake:
        poll.register(wake, select.POLLIN)
    held: list[Request] = []
    while control.fileno() not in {fd for fd, _ in poll.poll()}:
        held += decode(setup.requests.read(setup.inference.batch))
        if wake:
            wake.read(queue.num_columns)
            served = actor.serve_as_wanted(held)
        else:
            actor.serve(held)
            served = held
        _answer(served, setup)
        done = set(served)
        held = [request for request in held if request not in done]


def _answer(requests: Sequence[Request], setup: AsyncActorSetup) -> None:
    """Sends each executor the indices of its columns that were served."""
    queue = setup.queue
    answered: dict[int, list[int]] = {}
    for c, _ in requests:
        executor = int(queue.owners[c // queue.num_players, 2])
        answered.setdefault(executor, []).append(c)
    for executor, columns in answered.items():
        setup.answers[executor].write(columns)
