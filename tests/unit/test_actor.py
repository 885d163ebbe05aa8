"""Tests of inference: a column's answers depend only on the column, not on the rest of the batch.

All comparisons are bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from htsrl_cli.config.kinds import AlgoConfig, NetworkConfig
from htsrl_cli.envs.base import ActionSpec, EnvSpec
from htsrl_cli.networks.activations import CachingLayers, Layer, as_tensor, relu_layer
from htsrl_cli.networks.actor_critic import ActorCritic
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.networks.registry import activation_layout, build_policies, initial_policies
from htsrl_cli.sampling import inference as inference_module
from htsrl_cli.sampling.actor import Actor
from htsrl_cli.sampling.inference import InferenceSetup, has_free_rows, has_independent_rows
from htsrl_cli.sampling.requests import Request
from htsrl_cli.storage.memory import Array
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.storage.ring import Ring
from htsrl_cli.workers.board import Board
from tests import sections

T, B = 2, 11
VECTORS = EnvSpec((6,), "float32", ActionSpec("categorical", sizes=(3, 2)))
CONTINUOUS = EnvSpec((6,), "float32", ActionSpec("gaussian", low=(-1.0,), high=(1.0,)))
MASKED = replace(VECTORS, has_masks=True)
IMAGES = EnvSpec((36, 36, 2), "uint8", ActionSpec("categorical", sizes=(4,)))
PIXELS = EnvSpec((84, 84, 4), "uint8", ActionSpec("categorical", sizes=(6,)))
SPECS = pytest.mark.parametrize(
    ("spec", "precision"),
    [
        *((VECTORS, "fp32"), (MASKED, "fp32"), (CONTINUOUS, "bf16")),
        *((IMAGES, "fp32"), (IMAGES, "bf16")),
    ],
    ids=["vectors", "masked", "continuous-bf16", "images", "images-bf16"],
)
EVERYTHING = [(c, t) for c in range(B) for t in (0, 1, T, -1)]


@pytest.fixture(autouse=True)
def _torch_as_in_a_run() -> None:
    set_up_torch()


def make_setup(
    spec: EnvSpec, precision: str = "fp32", *, batch: int = 4, fixed_rows: bool = False
) -> InferenceSetup:
    """Returns a setup that keeps activations whenever the network has any."""
    network, algo = sections.network(), sections.a2c()
    return InferenceSetup(
        spec, network, algo, batch, fixed_rows, "cpu", precision, keeps_activations=True
    )


def random_policy(spec: EnvSpec) -> ActorCritic:
    """Returns an initial policy whose policy head is scaled up to have clear preferences."""
    (policy,) = initial_policies(spec, sections.network(), sections.a2c(), seed=0)
    assert isinstance(policy, ActorCritic)
    with torch.no_grad():
        policy.policy_head.weight.mul_(100)
    return policy


def random_parameters(spec: EnvSpec) -> dict[str, Array]:
    """Returns the parameters of `random_policy`, by their names in a run."""
    state = nn.ModuleList([random_policy(spec)]).state_dict()
    return {name: tensor.contiguous().numpy() for name, tensor in state.items()}


class Stage:
    """A ring full of random observations, a store with version 5, and an actor."""

    def __init__(self, setup: InferenceSetup) -> None:
        layout = activation_layout(setup.spec, setup.network, setup.precision)
        self.ring = Ring(setup.spec, T, B, layout)
        rng = np.random.default_rng(0)
        draws = rng.random((T, B, setup.spec.actions.num_dims), dtype=np.float32)
        self.ring.begin(8, np.zeros((B, *setup.spec.obs_shape)), draws)
        self.slot = self.ring.slot(8)
        scale = 128 if setup.spec.obs_dtype == "float32" else 1
        for obs in (self.slot.obs, self.ring.final_obs):
            obs[:] = rng.integers(0, 256, obs.shape) / scale
        if self.slot.masks is not None:
            self.slot.masks[:] = rng.random(self.slot.masks.shape) < 0.5
            # The first category of both dimensions is always allowed.
            self.slot.masks[..., [0, 3]] = True
        parameters = random_parameters(setup.spec)
        self.parameters = ParameterStore(
            {name: (array.shape, array.dtype.name) for name, array in parameters.items()}
        )
        for name, array in parameters.items():
            self.parameters.place(5)[name][...] = array
        self.parameters.publish(5)
        self.actor = Actor(setup, self.ring, self.parameters, Board(1), 0)

    def answers(self, parts: Sequence[Sequence[Request]]) -> dict[str, bytes]:
        """Serves the parts one after the other; returns what the actor has written."""
        for part in parts:
            self.actor.serve(part)
        names = ("actions", "log_probs", "values", "versions", "final_values")
        arrays = self.slot.arrays()
        kept = {f"activations {k}": a.tobytes() for k, a in enumerate(self.ring.activations(8))}
        return {name: arrays[name].tobytes() for name in names} | kept


def in_parts(seed: int) -> list[list[Request]]:
    """Returns all requests in a random order, in parts of random sizes."""
    rng = np.random.default_rng(seed)
    order = [EVERYTHING[i] for i in rng.permutation(len(EVERYTHING))]
    cuts = sorted(rng.choice(np.arange(1, len(order)), 9, replace=False).tolist())
    return [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]


@pytest.mark.parametrize("fixed_rows", [False, True], ids=["free", "fixed_rows"])
@SPECS
def test_a_columns_answers_do_not_depend_on_its_company(
    spec: EnvSpec, precision: str, fixed_rows: bool
) -> None:
    setup = make_setup(spec, precision, fixed_rows=fixed_rows)
    expected = Stage(setup).answers([[request] for request in EVERYTHING])
    # More requests than rows, two requests of one column, passes that are not full.
    for parts in ([EVERYTHING], [EVERYTHING[::-1]], in_parts(1), in_parts(2)):
        assert Stage(setup).answers(parts) == expected


@pytest.mark.parametrize("fixed_rows", [False, True], ids=["free", "fixed_rows"])
def test_chosen_actions_are_allowed_in_their_own_cells(fixed_rows: bool) -> None:
    stage = Stage(make_setup(MASKED, fixed_rows=fixed_rows))
    stage.answers(in_parts(3))
    assert stage.slot.masks is not None
    chosen = stage.slot.actions + np.array([0, 3])
    assert np.take_along_axis(stage.slot.masks[:-1], chosen, axis=-1).all()
    assert not stage.slot.masks[:-1].all()


@SPECS
def test_free_and_fixed_rows_answer_alike(spec: EnvSpec, precision: str) -> None:
    # If rows are free, a column's position in the batch makes no difference.
    answers = [
        Stage(make_setup(spec, precision, fixed_rows=fixed_rows)).answers([EVERYTHING])
        for fixed_rows in (False, True)
    ]
    assert answers[0] == answers[1]


def test_answers_stand_at_their_addresses() -> None:
    # Compares with the policy applied to all observations at once, up to rounding.
    stage = Stage(make_setup(VECTORS))
    stage.answers([EVERYTHING])
    policy = random_policy(VECTORS)
    with torch.no_grad():
        values = policy(torch.from_numpy(stage.slot.obs).flatten(0, 1))[1].view(T + 1, B)
        finals = policy(torch.from_numpy(stage.ring.final_obs))[1]
    np.testing.assert_allclose(stage.slot.values, values.numpy(), atol=1e-5)
    # Final values were requested for step 0 only (by -1).
    np.testing.assert_allclose(stage.slot.final_values[0], finals.numpy(), atol=1e-5)
    assert np.isnan(stage.slot.final_values[1]).all()
    assert (stage.slot.versions == 5).all()
    assert (stage.slot.actions >= 0).all()
    assert (stage.slot.actions < [3, 2]).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_stand_at_the_addresses_of_their_observations(precision: str) -> None:
    # The value head turns the last activations into the slot's values.
    setup = make_setup(IMAGES, precision)
    stage = Stage(setup)
    assert [len(stage.ring.activations(rollout)) for rollout in (8, 9)] == [4, 4]
    stage.answers([EVERYTHING[::-1]])
    policy = random_policy(IMAGES)
    features = as_tensor(stage.ring.activations(8)[-1]).float().view(T, B, -1)
    with torch.no_grad():
        values = policy.value_head(features).squeeze(2)
    np.testing.assert_allclose(stage.slot.values[:T], values.numpy(), atol=1e-4)
    # The other slot's activations are still poisoned with NaN.
    assert all(as_tensor(array).isnan().all() for array in stage.ring.activations(9))


def test_only_what_was_asked_is_written() -> None:
    stage = Stage(make_setup(VECTORS))
    before = {name: array.copy() for name, array in stage.slot.arrays().items()}
    stage.answers([[(3, 1), (4, T), (5, -2)]])
    written = {
        name: np.argwhere((array != before[name]) & ~(np.isnan(array) & np.isnan(before[name])))
        for name, array in stage.slot.arrays().items()
    }
    assert {
        name: {(t, c) for t, c, *_ in cells} for name, cells in written.items() if len(cells)
    } == {
        "actions": {(1, 3)},
        "log_probs": {(1, 3)},
        "values": {(1, 3), (T, 4)},
        "versions": {(1, 3), (T, 4)},
        "final_values": {(1, 5)},
    }


def test_new_parameters_are_taken_with_their_version() -> None:
    stage = Stage(make_setup(VECTORS))
    first = stage.answers([[(0, 0)]])
    value = float(stage.slot.values[0, 0])
    for name, array in stage.parameters.values.items():
        stage.parameters.place(6)[name][...] = 2 * array
    stage.parameters.publish(6)
    assert stage.answers([[(0, 0)]]) != first
    assert stage.slot.versions[0, 0] == 6
    assert float(stage.slot.values[0, 0]) != value


# Free rows


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch", [4, 8, 16])
@pytest.mark.parametrize("spec", [PIXELS, VECTORS], ids=["pixels", "vectors"])
def test_rows_are_independent_in_the_shapes_that_we_ship(
    spec: EnvSpec, batch: int, precision: str
) -> None:
    # On some processors, a row's bits depend on its position: columns then get fixed rows.
    assert has_independent_rows(make_setup(spec, precision, batch=batch), random_parameters(spec))


class Positional(ActorCritic):
    """A policy whose values depend on the position in the batch."""

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> tuple[Tensor, Tensor]:
        params, values = super().forward(obs, layer)
        return params, values + 1e-3 * torch.arange(len(values))


class Neighbourly(ActorCritic):
    """A policy whose values depend on the other rows, as with batch normalization."""

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> tuple[Tensor, Tensor]:
        params, values = super().forward(obs, layer)
        return params, values + values.mean()


class Restless(ActorCritic):
    """A policy in which only a kept layer depends on the position in the batch, not the results."""

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> tuple[Tensor, Tensor]:
        results = super().forward(obs, layer)
        if isinstance(layer, CachingLayers):
            layer.outputs[1] += torch.arange(len(obs)).view(-1, 1, 1, 1)
        return results


def build_instead(patch: pytest.MonkeyPatch, kind: type[ActorCritic]) -> None:
    def build(spec: EnvSpec, network: NetworkConfig, algo: AlgoConfig, *how: Any) -> nn.ModuleList:
        (policy,) = build_policies(spec, network, algo, *how)
        assert isinstance(policy, ActorCritic)
        return nn.ModuleList([kind(spec, policy.trunk, policy.value_trunk)])

    patch.setattr(inference_module, "build_policies", build)


class Faint(ActorCritic):
    """A policy whose values depend on the position in the batch by one rounding error."""

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> tuple[Tensor, Tensor]:
        params, values = super().forward(obs, layer)
        above = torch.nextafter(values, torch.tensor(torch.inf))
        return params, torch.where(torch.arange(len(values)) % 2 == 0, values, above)


@pytest.mark.parametrize("kind", [Positional, Neighbourly, Faint])
@pytest.mark.parametrize("batch", [2, 4, 5, 16])
def test_rows_that_are_not_free_are_found_out(
    kind: type[ActorCritic], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_instead(monkeypatch, kind)
    setup, values = make_setup(VECTORS, batch=batch), random_parameters(VECTORS)
    assert not has_free_rows(setup, values)
    assert has_independent_rows(setup, values) == (kind is not Neighbourly)


def test_rows_are_not_free_where_activations_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    build_instead(monkeypatch, Restless)
    setup = make_setup(IMAGES)
    assert not has_free_rows(setup, random_parameters(IMAGES))
    assert has_free_rows(replace(setup, keeps_activations=False), random_parameters(IMAGES))


def test_tiles_are_for_policies_that_see_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    # With fixed rows, a column keeps its row and so its answers, whatever else is in the batch.
    build_instead(monkeypatch, Positional)
    partitions = [[EVERYTHING], [EVERYTHING[::-1]], in_parts(1), in_parts(2)]
    fixed_rows, free = (
        [Stage(make_setup(VECTORS, fixed_rows=fixed_rows)).answers(parts) for parts in partitions]
        for fixed_rows in (True, False)
    )
    assert all(answers == fixed_rows[0] for answers in fixed_rows)
    assert not all(answers == free[0] for answers in free)
