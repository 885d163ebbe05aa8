"""Tests of users' networks: buffers go with the parameters, initialization follows the seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from htsrl_cli.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from htsrl_cli.checkpoints.state import State, digest
from htsrl_cli.config.kinds import AlgoConfig, OwnNetworkConfig
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import ConfigError
from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.networks.registry import initial_policies
from htsrl_cli.runners.run import train
from htsrl_cli.sampling.inference import Inference, InferenceSetup
from htsrl_cli.storage.parameters import ParameterStore
from tests import sections
from tests.unit.learner_references import A2C, PPO, SPEC, make_slot

MODULE = "tests.unit.own_networks"
BUFFERED = OwnNetworkConfig(f"{MODULE}:BufferedNet", kwargs={"width": 5})
DRAWING = OwnNetworkConfig(f"{MODULE}:DrawingNet")
SCALE, COUNT = "0.trunk.scale", "0.trunk.count"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _torch_as_in_a_run() -> None:
    set_up_torch()


# Buffers


def make_learner(algo: AlgoConfig = A2C) -> Learner:
    config = sections.learner(device="cpu", precision="fp32", num_threads=1)
    return Learner(SPEC, BUFFERED, algo, config, CPU, num_updates=9, lag=1, seed=3)


def change_buffers(learner: Learner) -> None:
    state = learner.policies.state_dict()
    state[SCALE].mul_(2)
    state[COUNT].add_(1)


def test_buffers_are_among_the_parameters() -> None:
    arrays = make_learner().parameters()
    assert arrays[SCALE].tolist() == [1.0, 1.25, 1.5, 1.75, 2.0]
    count = arrays[COUNT]
    assert (count.shape, count.dtype.name, int(count)) == ((), "int64", 2**40)
    assert arrays["0.trunk.layer.weight"].shape == (5, *SPEC.obs_shape)


def test_actors_get_buffers_with_the_parameters() -> None:
    learner = make_learner()
    arrays = learner.parameters()
    store = ParameterStore({n: (a.shape, a.dtype.name) for n, a in arrays.items()})
    actor = Inference(InferenceSetup(SPEC, BUFFERED, A2C, 4, False, "cpu", "fp32", False))
    actor.obs[:] = make_slot(SPEC, 0).obs[0, :4]
    answers: list[Tensor] = []
    for version in (0, 1):
        learner.write_parameters(store.place(version))
        store.publish(version)
        actor.load(store.values)
        taken = actor.policies.state_dict()
        for name, expected in learner.policies.state_dict().items():
            assert torch.equal(taken[name], expected), (version, name)
        answers.append(actor.run(0)[2].clone())
        change_buffers(learner)
    assert int(store.values[COUNT]) == 2**40 + 1
    assert not torch.equal(*answers)


def test_actors_in_bf16_round_float_buffers_and_keep_integers() -> None:
    learner = make_learner()
    learner.policies.state_dict()[SCALE].fill_(1.001)
    actor = Inference(InferenceSetup(SPEC, BUFFERED, A2C, 4, False, "cpu", "bf16", False))
    actor.load(learner.parameters())
    taken = actor.policies.state_dict()
    assert (taken[SCALE].dtype, taken[SCALE].unique().tolist()) == (torch.bfloat16, [1.0])
    assert (taken[COUNT].dtype, int(taken[COUNT])) == (torch.int64, 2**40)


def test_the_digest_of_the_parameters_feels_buffers() -> None:
    learner = make_learner()
    digests = {digest(learner.parameters())}
    for name in (SCALE, COUNT):
        learner.policies.state_dict()[name].add_(1)
        digests.add(digest(learner.parameters()))
    assert len(digests) == 3


def saved_and_read(state: State, path: Path) -> State:
    save_checkpoint(path, Checkpoint(state.arrays, state.values))
    read = load_checkpoint(path)
    return State(read.arrays, read.meta)


@pytest.mark.parametrize("algo", [A2C, PPO], ids=["a2c", "ppo"])
def test_a_restored_learner_has_its_buffers_and_goes_on_alike(
    algo: AlgoConfig, tmp_path: Path
) -> None:
    # θ[j-1] has buffers, too: A2C takes its next gradient with the old ones.
    one, other = make_learner(algo), make_learner(algo)
    one.update(make_slot(SPEC, 0), lambda: None)
    change_buffers(one)
    assert one.previous_parameters()[SCALE].tolist() != one.parameters()[SCALE].tolist()
    other.load_state(saved_and_read(one.state(), tmp_path / "a.ckpt"))
    for number in (1, 2):
        for learner in (one, other):
            learner.update(make_slot(SPEC, number), lambda: None)
        expected, got = one.state(), other.state()
        assert expected.arrays.keys() == got.arrays.keys()
        assert {f"params/{SCALE}", f"previous/{COUNT}"} <= got.arrays.keys()
        for name, array in expected.arrays.items():
            assert array.tobytes() == got.arrays[name].tobytes(), (number, name)


@pytest.mark.parametrize("algo", [A2C, PPO], ids=["a2c", "ppo"])
def test_the_gradient_feels_buffers(algo: AlgoConfig) -> None:
    # Buffers reach the copies that are differentiated; for A2C, once they belong to θ[j-1].
    one, other = make_learner(algo), make_learner(algo)
    change_buffers(other)
    for number in range(2):
        logged = [learner.update(make_slot(SPEC, number), lambda: None) for learner in (one, other)]
    assert logged[0]["learner/grad_norm"] != logged[1]["learner/grad_norm"]


def own_run(total_steps: int) -> TrainConfig:
    return sections.train(
        env=sections.synthetic("sleep", episode_length=7),
        algo=sections.a2c(),
        network=BUFFERED,
        actors=sections.actors(num_envs=4, inference_batch=2, device="cpu", precision="fp32"),
        learner=sections.learner(device="cpu", precision="fp32"),
        runner=sections.runner("serial", sync_interval=4),
        checkpoint=sections.checkpoint(interval=16),
        log=sections.log(interval=16, tensorboard=False),
        total_steps=total_steps,
    )


def test_a_run_with_buffers_is_resumed_exactly(tmp_path: Path) -> None:
    digests: list[dict[str, Any]] = []
    middle = tmp_path / "whole" / "checkpoints" / "step_000000000064.ckpt"
    for name, checkpoint in (("whole", None), ("resumed", middle)):
        (tmp_path / name).mkdir()
        train(own_run(96), tmp_path / name, checkpoint)
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        digests.append({key: value for key, value in summary.items() if key.endswith("sha256")})
    assert digests[0] == digests[1]
    last = load_checkpoint(tmp_path / "resumed" / "checkpoints" / "step_000000000096.ckpt")
    prefix = "learner/params/"
    stored = {n.removeprefix(prefix): a for n, a in last.arrays.items() if n.startswith(prefix)}
    assert COUNT in stored
    assert digest(stored) == digests[0]["params_sha256"]


# Initialization


def initial(seed: int, policies: str = "shared") -> dict[str, Tensor]:
    spec, algo = replace(SPEC, num_players=2), sections.a2c(policies=policies)
    return dict(initial_policies(spec, DRAWING, algo, seed).state_dict())


def test_layers_that_torch_initialises_are_a_function_of_the_seed() -> None:
    # The layers may be unused, and each policy has its own.
    drawn = ("0.trunk.cell.weight_ih", "0.trunk.cell.bias_hh", "0.trunk.unused.weight")
    torch.manual_seed(0)
    one = initial(seed=4)
    torch.manual_seed(1)
    again, other = initial(seed=4), initial(seed=5)
    for name in drawn:
        assert one[name].any(), name
        assert torch.equal(one[name], again[name]), name
        assert not torch.equal(one[name], other[name]), name
    each = initial(seed=4, policies="independent")
    for name in drawn:
        assert torch.equal(each[name], one[name]), name
        assert not torch.equal(each[name], each[name.replace("0.", "1.", 1)]), name


def test_torchs_own_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    initial(seed=4, policies="independent")
    assert torch.equal(torch.get_rng_state(), before)


# Mistakes


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("no_such_module:Net", "there is no module no_such_module"),
        ("tests.unit.nowhere:Net", r"there is no module tests\.unit\.nowhere"),
        (f"{MODULE}:Nothing", f"module {MODULE} has no Nothing"),
        (f"{MODULE}:no_trunk", "an integer num_features"),
        ("lacking_module:Net", "module lacking_module needs the package no_such_package"),
    ],
)
def test_a_network_that_cannot_be_had_is_refused(
    name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking_module.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=remedy) as caught:
        initial_policies(SPEC, OwnNetworkConfig(name), A2C, seed=1)
    assert (caught.value.key, "\n" in str(caught.value)) == ("network.name", False)
