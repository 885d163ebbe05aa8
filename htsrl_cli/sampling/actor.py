"""The actor: batched inference for the columns whose requests have arrived.

The results of a row do not depend on the other rows of its forward pass, so the actor batches
requests as they arrive. With `runner=sync`, it instead waits for the requests of all columns.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch

from htsrl_cli.networks.activations import as_array
from htsrl_cli.networks.device import set_up_torch, settle_on
from htsrl_cli.sampling.inference import Inference, InferenceSetup
from htsrl_cli.sampling.requests import Request, decode, is_final, truncating_step
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.storage.slot import Cells, Slot
from htsrl_cli.workers.board import Board
from htsrl_cli.workers.process import Pipe
from htsrl_cli.workers.scheduling import wake_promptly


class Actor:
    """A server of requests, which reads observations from the slot and writes actions and values.

    If there are K policies, policy c % K serves column c. With `setup.fixed_rows`, column c always
    takes row (c // K) % `setup.batch` of a forward pass. There, c counts from the first column of
    the shard, so that the row does not depend on how many shards this rank hosts.

    Args:
        worker: index of the actor's line on the board.
    """

    def __init__(
        self, setup: InferenceSetup, ring: Cells, store: ParameterStore, board: Board, worker: int
    ) -> None:
        self._setup = setup
        self._ring = ring
        self._store = store
        self._board = board
        self._worker = worker
        board.enter(worker)
        self._inference = Inference(setup)
        self._every_row = np.arange(setup.batch)
        self._version = -1
        board.leave(worker)

    def serve(self, requests: Sequence[Request]) -> None:
        """Serves all requests with the published parameters, in as many passes as they need."""
        self._board.enter(self._worker)
        self._load_parameters()
        num_policies = len(self._inference.policies)
        for policy in range(num_policies):
            own = [(c, t) for c, t in requests if c % num_policies == policy]
            for rows, chunk in self._passes(own):
                self._serve_pass(policy, rows, chunk)
        self._board.leave(self._worker)

    def _load_parameters(self) -> None:
        if self._version != self._store.version:
            self._inference.load(self._store.values)
            self._version = self._store.version

    def _passes(self, requests: Sequence[Request]) -> Iterator[tuple[Array, Sequence[Request]]]:
        """Splits one policy's requests into passes; yields row indices and requests of each pass.

        A pass with n requests has n row indices: request i takes row `rows[i]`.
        """
        batch = self._setup.batch
        if not self._setup.fixed_rows:
            for start in range(0, len(requests), batch):
                chunk = requests[start : start + batch]
                yield self._every_row[: len(chunk)], chunk
            return
        passes: list[dict[int, Request]] = []
        for request in requests:
            row = self._home(request[0]) // len(self._inference.policies) % batch
            free = next((taken for taken in passes if row not in taken), None)
            if free is None:
                passes.append({row: request})
            else:
                free[row] = request
        for taken in passes:
            yield np.array(list(taken)), list(taken.values())

    def _home(self, column: int) -> int:
        """Returns the number from which a column's fixed row is derived."""
        return column % (self._setup.shard_width or self._ring.num_columns)

    def _serve_pass(self, policy: int, rows: Array, requests: Sequence[Request]) -> None:
        """Serves requests [n] in rows [n] of one pass and writes the results to the slot."""
        slot = self._ring.slot(self._ring.rollout)
        columns, steps = np.array(requests).T
        self._fill(slot, rows, columns, steps)
        self._fill_memories(rows, columns, steps)
        actions, log_probs, values = (result.numpy() for result in self._inference.run(policy))
        self._board.count_pass(self._worker)
        final = is_final(steps)
        if final.any():
            slot.final_values[truncating_step(steps[final]), columns[final]] = values[rows[final]]
            rows, columns, steps = rows[~final], columns[~final], steps[~final]
        slot.values[steps, columns] = values[rows]
        slot.versions[steps, columns] = self._version
        acts = steps < self._ring.num_steps
        rows, columns, steps = rows[acts], columns[acts], steps[acts]
        slot.actions[steps, columns] = actions[rows]
        slot.log_probs[steps, columns] = log_probs[rows]
        if self._inference.memories is not None:
            self._ring.memories[columns] = self._inference.next_memories[rows]
        activations = self._ring.activations(self._ring.rollout)
        for kept, outputs in zip(activations, self._inference.activations, strict=True):
            kept[steps, columns] = as_array(outputs)[rows]

    def _fill(self, slot: Slot, rows: Array, columns: Array, steps: Array) -> None:
        """Copies the observations, noise and masks of n requests into rows of the next pass.

        The arrays `rows`, `columns` and `steps` have shape [n]. Final observations come from the
        ring, because they are not in the slot. Rows without a request hold arbitrary values.
        """
        inference = self._inference
        cells = steps * self._ring.num_columns + columns
        if self._setup.fixed_rows:
            cells_of_rows = np.zeros_like(self._every_row)
            cells_of_rows[rows] = cells
            cells = cells_of_rows
        inputs = [(slot.obs, inference.obs), (slot.noise, inference.noise)]
        if slot.masks is not None and inference.masks is not None:
            inputs.append((slot.masks, inference.masks))
        for source, target in inputs:
            every_cell = source.reshape(-1, *source.shape[2:])
            every_cell.take(cells, axis=0, out=target[: len(cells)], mode="clip")
        final = is_final(steps)
        for row, c in zip(rows[final], columns[final], strict=True):
            inference.obs[row] = self._ring.final_obs[c]

    def _fill_memories(self, rows: Array, columns: Array, steps: Array) -> None:
        """Copies the memory states of n requests into rows of the next pass; see `_fill`."""
        memories, ring = self._inference.memories, self._ring
        if memories is not None:
            memories[rows] = ring.memories[columns]
            final = is_final(steps)
            memories[rows[final]] = ring.final_memories[columns[final]]


@dataclass(frozen=True)
class ActorSetup:
    """The arguments of an actor's process or thread.

    Attributes:
        inference: the set-up of the actor's forward passes.
        ring: the slots, from which the actor reads observations and to which it writes actions and
            values.
        store: the store of the published parameters.
        board: the load counters and heartbeats.
        requests: the pipe through which all executors send requests.
        answers: the pipes through which the actor answers, one for each executor.
        executor_of: index of each column's executor.
        lockstep: True to wait until every column has sent a request, and then serve all of them.
    """

    inference: InferenceSetup
    ring: Cells
    store: ParameterStore
    board: Board
    requests: Pipe
    answers: Sequence[Pipe]
    executor_of: Sequence[int]
    lockstep: bool


def run_actor(control: Connection, worker: int, setup: ActorSetup) -> None:
    """Runs an actor in the current process or thread until a message arrives on `control`."""
    wake_promptly()
    set_up_torch()
    settle_on(torch.device(setup.inference.device))
    actor = Actor(setup.inference, setup.ring, setup.store, setup.board, worker)
    num_columns = setup.ring.num_columns
    poll = select.poll()
    poll.register(setup.requests, select.POLLIN)
    poll.register(control, select.POLLIN)
    held: list[Request] = []
    while control.fileno() not in {fd for fd, _ in poll.poll()}:
        held += decode(setup.requests.read(setup.inference.batch))
        if not setup.lockstep or sum(not is_final(t) for _, t in held) == num_columns:
            actor.serve(held)
            _answer(held, setup)
            held = []


def _answer(requests: Sequence[Request], setup: ActorSetup) -> None:
    """Sends each executor the indices of its columns that were served."""
    answered: dict[int, list[int]] = {}
    for c, _ in requests:
        answered.setdefault(setup.executor_of[c], []).append(c)
    for executor, columns in answered.items():
        setup.answers[executor].write(columns)
