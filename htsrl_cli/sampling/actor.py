"""The actor: batched inference over whichever columns are ready.

Every forward pass has `inference_batch` rows, whatever the number of requests: a row's bits depend
on the shape of its batch. At a constant shape they do not depend on the other rows (`free_rows`
checks that on the network, precision and device of the run), so requests are packed as they come.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.algorithms.algorithms import build_algorithm
from htsrl_cli.config.sections import ActorsConfig, AlgoConfig, LearnerConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.networks.activations import CachingLayers, as_array, relu_layer
from htsrl_cli.networks.device import (
    record,
    resolve_device,
    set_up_torch,
    settle_on,
    sleep_until_done,
)
from htsrl_cli.networks.policy import activation_layout, build_policies, load_parameters, sample
from htsrl_cli.storage.memory import Array, ArrayType
from htsrl_cli.storage.storage import Board, ParameterStore, Request, Ring, Slot
from htsrl_cli.workers.process import Pipe
from htsrl_cli.workers.scheduling import wake_promptly


@dataclass(frozen=True)
class ActorSetup:
    """What every actor of a run has in common.

    Attributes:
        batch: rows of every forward pass.
        fixed_rows: a column keeps to one row of the pass, see `Actor`.
        device: a torch device.
        precision: `fp32` or `bf16`.
        keeps_activations: beside the slot, for the learner; see `activations_to_keep`.
    """

    spec: EnvSpec
    algo: AlgoConfig
    batch: int
    fixed_rows: bool
    device: str
    precision: str
    keeps_activations: bool


def activations_to_keep(
    spec: EnvSpec, algo: AlgoConfig, actors: ActorsConfig, learner: LearnerConfig
) -> list[ArrayType]:
    """Of a row of what actors keep for the learner, see `htsrl_cli.networks.activations`.

    Nothing unless the learner's forward pass would be theirs: the same parameters in the same
    precision, on the CPU.
    """
    devices = {
        resolve_device("actors.device", actors.device).type,
        resolve_device("learner.device", learner.device).type,
    }
    alike = devices == {"cpu"} and actors.precision == learner.precision
    if not (alike and build_algorithm(algo).at_behaviour):
        return []
    return activation_layout(spec, algo, actors.precision)


class Inference:
    """The policies of a run and the buffers of a forward pass of constant shape.

    On a GPU a pass is recorded once and then replayed, sampling and copies in both directions
    included, on a stream of its own that the learner's kernels give way to.

    Attributes:
        policies: the networks, `ActorCritic`s.
        obs: [batch, *obs_shape], noise: float32 [batch, D]; numpy arrays to fill before `run`.
        activations: of the last run, if they are kept; each [batch, ...].
    """

    def __init__(self, setup: ActorSetup) -> None:
        self._device = torch.device(setup.device)
        self.policies = build_policies(setup.spec, setup.algo, setup.precision, self._device)
        self._actions = setup.spec.actions
        self._keeps_activations = setup.keeps_activations
        self.activations: list[Tensor] = []
        self._obs = torch.from_numpy(
            np.zeros((setup.batch, *setup.spec.obs_shape), setup.spec.obs_dtype)
        )
        self._noise = torch.zeros(setup.batch, setup.spec.actions.num_dims)
        self._on_stream: AbstractContextManager[object] = nullcontext()
        self._recorded: list[tuple[torch.cuda.CUDAGraph, list[Tensor]]] = []
        if self._device.type == "cuda":
            self._obs, self._noise = self._obs.pin_memory(), self._noise.pin_memory()
            self._stream = torch.cuda.Stream(  # type: ignore[no-untyped-call]
                self._device, priority=-1
            )
            self._on_stream = torch.cuda.stream(self._stream)
            self._recorded = [self._record(policy) for policy in range(len(self.policies))]
        self.obs: Array = self._obs.numpy()
        self.noise: Array = self._noise.numpy()

    def load(self, parameters: Tensor) -> None:
        """Takes over parameters, float32 [P]; see `load_parameters`."""
        with self._on_stream:
            load_parameters(self.policies, parameters)

    @torch.inference_mode()
    def run(self, policy: int) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [batch, D], log-probabilities [batch] and values [batch], on the CPU.

        They say what they say until the next run.

        Args:
            policy: number of the network to use.
        """
        if self._recorded:
            graph, (actions, log_probs, values) = self._recorded[policy]
            with self._on_stream:
                graph.replay()
                sleep_until_done(self._device)
            return actions, log_probs, values
        layers = CachingLayers() if self._keeps_activations else None
        params, values = self.policies[policy](self._obs.to(self._device), layers or relu_layer)
        if layers:
            self.activations = layers.outputs
        actions, log_probs = sample(self._actions, params.cpu(), self._noise)
        return actions, log_probs, values.cpu()

    # Not in inference mode: what torch makes there for all recordings, others could not change.
    @torch.no_grad()
    def _record(self, policy: int) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        """A network's pass, and where its actions, log-probabilities and values are then found."""
        found: list[Tensor] = []

        def work() -> None:
            obs, noise = (
                array.to(self._device, non_blocking=True) for array in (self._obs, self._noise)
            )
            params, values = self.policies[policy](obs)
            results = (*sample(self._actions, params, noise), values)
            if not found:
                found.extend(torch.empty_like(r, device="cpu", pin_memory=True) for r in results)
            for kept, result in zip(found, results, strict=True):
                kept.copy_(result, non_blocking=True)

        graph, _ = record(work, self._stream)
        return graph, found


class Actor:
    """Serves requests: reads observations from the slot and writes what the policy says there.

    Of K policies, number c % K serves column c. Where rows are not free (`setup.fixed_rows`), the
    column always takes row c // K % batch.
    """

    def __init__(
        self, setup: ActorSetup, ring: Ring, store: ParameterStore, board: Board, worker: int
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
        """Answers all requests, in as many passes as they need."""
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
            self._inference.load(torch.from_numpy(self._store.values))
            self._version = self._store.version

    def _passes(self, requests: Sequence[Request]) -> Iterator[tuple[Array, Sequence[Request]]]:
        """Splits one policy's requests into passes; yields the row of each request in its pass."""
        batch = self._setup.batch
        if not self._setup.fixed_rows:
            for start in range(0, len(requests), batch):
                chunk = requests[start : start + batch]
                yield self._every_row[: len(chunk)], chunk
            return
        passes: list[dict[int, Request]] = []
        for request in requests:
            row = request[0] // len(self._inference.policies) % batch
            free = next((taken for taken in passes if row not in taken), None)
            if free is None:
                passes.append({row: request})
            else:
                free[row] = request
        for taken in passes:
            yield np.array(list(taken)), list(taken.values())

    def _serve_pass(self, policy: int, rows: Array, requests: Sequence[Request]) -> None:
        """Answers requests [n] in rows [n] of a pass."""
        slot = self._ring.slot(self._ring.interval)
        columns, steps = np.array(requests).T
        self._fill(slot, rows, columns, steps)
        actions, log_probs, values = (result.numpy() for result in self._inference.run(policy))
        self._board.count_pass(self._worker)
        if steps.min() < 0:
            final = steps < 0
            slot.final_values[-1 - steps[final], columns[final]] = values[rows[final]]
            rows, columns, steps = rows[~final], columns[~final], steps[~final]
        slot.values[steps, columns] = values[rows]
        slot.versions[steps, columns] = self._version
        acts = steps < self._ring.num_steps
        rows, columns, steps = rows[acts], columns[acts], steps[acts]
        slot.actions[steps, columns] = actions[rows]
        slot.log_probs[steps, columns] = log_probs[rows]
        activations = self._ring.activations(self._ring.interval)
        for kept, outputs in zip(activations, self._inference.activations, strict=True):
            kept[steps, columns] = as_array(outputs)[rows]

    def _fill(self, slot: Slot, rows: Array, columns: Array, steps: Array) -> None:
        """Brings what requests are about, see `Request`, into the rows of the pass, each [n].

        What is not in the slot, and rows without a request, are filled with anything.
        """
        inference = self._inference
        cells = steps * self._ring.num_columns + columns
        if self._setup.fixed_rows:
            cells_of_rows = np.zeros_like(self._every_row)
            cells_of_rows[rows] = cells
            cells = cells_of_rows
        for source, target in ((slot.obs, inference.obs), (slot.noise, inference.noise)):
            every_cell = source.reshape(-1, *source.shape[2:])
            every_cell.take(cells, axis=0, out=target[: len(cells)], mode="clip")
        if steps.min() < 0:
            for row, c, t in zip(rows, columns, steps, strict=True):
                if t < 0:
                    inference.obs[row] = self._ring.final_obs[c]


def free_rows(setup: ActorSetup, parameters: Tensor) -> bool:
    """Whether a row's bits are the same wherever it stands and whatever the other rows hold.

    Args:
        parameters: float32 [P], what `load_parameters` takes.
    """
    inference = Inference(setup)
    inference.load(parameters)
    rng = np.random.default_rng(0)
    inference.noise[:] = rng.random(inference.noise.shape, dtype=np.float32)
    obs = _random_obs(rng, inference.obs)
    noise = inference.noise.copy()
    inference.obs[:] = obs
    # Of several policies, the first: all have its shapes.
    expected = [result.clone() for result in (*inference.run(0), *inference.activations)]
    batch = setup.batch
    for shift in {1, batch // 3, batch // 2, batch - 1} - {0}:
        inference.obs[:] = np.roll(obs, shift, axis=0)
        inference.noise[:] = np.roll(noise, shift, axis=0)
        # Every other row is replaced: what is left must not notice.
        inference.obs[shift % 2 :: 2] = _random_obs(rng, inference.obs[shift % 2 :: 2])
        kept = torch.arange(1 - shift % 2, batch, 2)
        results = (*inference.run(0), *inference.activations)
        for result, reference in zip(results, expected, strict=True):
            if not torch.equal(result[kept], reference.roll(shift, 0)[kept]):
                return False
    return True


def _random_obs(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    if like.dtype == np.uint8:
        return rng.integers(0, 256, like.shape, dtype=np.uint8)
    return rng.standard_normal(like.shape).astype(like.dtype)


@dataclass(frozen=True)
class ActorPipes:
    """Requests of all executors, and the way back to each.

    Attributes:
        answers: one pipe for each executor.
        columns_per_executor: column c belongs to executor c // columns_per_executor.
        lockstep: wait until every column has asked before serving any (`runner=sync`).
    """

    requests: Pipe
    answers: Sequence[Pipe]
    columns_per_executor: int
    lockstep: bool


def run_actor(
    control: Connection,
    worker: int,
    setup: ActorSetup,
    ring: Ring,
    store: ParameterStore,
    board: Board,
    pipes: ActorPipes,
) -> None:
    """An actor's life, in a process or a thread: serves until `control` says anything."""
    wake_promptly()
    set_up_torch()
    settle_on(torch.device(setup.device))
    actor = Actor(setup, ring, store, board, worker)
    poll = select.poll()
    poll.register(pipes.requests, select.POLLIN)
    poll.register(control, select.POLLIN)
    held: list[Request] = []
    while control.fileno() not in {fd for fd, _ in poll.poll()}:
        numbers = pipes.requests.read(setup.batch)
        held += zip(numbers[::2], numbers[1::2], strict=True)
        if not pipes.lockstep or sum(t >= 0 for _, t in held) == ring.num_columns:
            actor.serve(held)
            _answer(held, pipes)
            held = []


def _answer(requests: Sequence[Request], pipes: ActorPipes) -> None:
    """Tells every executor which of its columns were served."""
    answered: dict[int, list[int]] = {}
    for c, _ in requests:
        answered.setdefault(c // pipes.columns_per_executor, []).append(c)
    for executor, columns in answered.items():
        pipes.answers[executor].write(columns)
