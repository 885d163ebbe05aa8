"""The determinism contract on a GPU: the same bits for any workers, and after a resume.

Skipped without a GPU. `tests/integration/test_gpu.py` tests what is possible without one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import ActionSpec, EnvSpec
from htsrl_cli.learning.gradient import GpuEngine, GradientEngine
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.networks.distributions import sample
from htsrl_cli.networks.registry import initial_policies
from htsrl_cli.sampling.inference import Inference, InferenceSetup
from tests import sections
from tests.harness import Fingerprint, fingerprint, run, small_config, with_workers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
PIXELS = EnvSpec((84, 84, 4), "uint8", ActionSpec("categorical", sizes=(6,)))


def gpu_config(algo: str) -> TrainConfig:
    """Returns a run with actors and learner on the GPU: PPO in bf16, A2C in fp32."""
    config = small_config("screens", algo, "bf16" if algo == "ppo" else "fp32")
    return replace(
        config,
        actors=replace(config.actors, device="cuda:0"),
        learner=replace(config.learner, device="cuda:0"),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns a function that gives the folder of a PPO or A2C run; it trains at the first call."""
    folder = tmp_path_factory.mktemp("runs")

    def whole(algo: str) -> Path:
        if not (folder / algo).exists():
            run(gpu_config(algo), folder / algo)
        return folder / algo

    return whole


def variant(name: str, algo: str) -> TrainConfig:
    """Returns the same run with other workers."""
    config = gpu_config(algo)
    if name == "serial":
        return replace(config, runner=replace(config.runner, name="serial"))
    if name == "processes":
        return replace(config, actors=replace(config.actors, host="process"))
    return with_workers(config, num_executors=8, num_actors=2, num_threads=1)


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
@pytest.mark.parametrize("name", ["more", "processes", "serial"])
def test_runs_are_equal_whatever_the_workers(
    name: str, algo: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    assert run(variant(name, algo), tmp_path) == fingerprint(trained(algo))


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_a_resumed_run_equals_the_whole_one(
    algo: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoints = sorted((trained(algo) / "checkpoints").glob("*.ckpt"))
    resumed = run(gpu_config(algo), tmp_path, checkpoints[0])
    assert without_metrics(resumed) == without_metrics(fingerprint(trained(algo)))


def without_metrics(of_run: Fingerprint) -> Fingerprint:
    return replace(of_run, metrics=[])


def test_recorded_gradients_are_those_of_the_kernels_one_by_one(
    trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GpuEngine, "gradient", GradientEngine.gradient)
    assert run(gpu_config("ppo"), tmp_path) == fingerprint(trained("ppo"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_passes_are_those_of_the_kernels_one_by_one(precision: str) -> None:
    set_up_torch()
    network, algo = sections.network(), sections.ppo()
    inference = Inference(
        InferenceSetup(PIXELS, network, algo, 32, False, "cuda:0", precision, False)
    )
    rng = np.random.default_rng(0)
    for seed in (1, 2):
        state = initial_policies(PIXELS, network, algo, seed).state_dict()
        inference.load({name: tensor.contiguous().numpy() for name, tensor in state.items()})
        inference.obs[:] = rng.integers(0, 256, inference.obs.shape)
        inference.noise[:] = rng.random(inference.noise.shape)
        found = inference.run(0)
        with torch.no_grad():
            params, values = inference.policies[0](torch.from_numpy(inference.obs).cuda())
            expected = sample(PIXELS.actions, params, torch.from_numpy(inference.noise).cuda())
        for result, reference in zip(found, (*expected, values), strict=True):
            assert torch.equal(result, reference.cpu())
