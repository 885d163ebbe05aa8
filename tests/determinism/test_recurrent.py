"""The determinism contract with a memory, together with masks, `Dict` observations and statistics.

The environment's observations are a `Dict` of a mask and of numbers, which are normalized.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from htsrl_cli.algorithms.registry import build_algorithm
from htsrl_cli.checkpoints.file import Checkpoint, load_checkpoint
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.registry import make_env
from htsrl_cli.learning.gradient import engine_for
from htsrl_cli.learning.sequences import Sequences
from htsrl_cli.networks import recurrent
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.runners import wiring
from htsrl_cli.storage.slot import Slot
from tests import harness, sections
from tests.determinism import test_replay as replaying
from tests.determinism import test_resume as resuming
from tests.determinism.test_contract import torment
from tests.harness import STEPS_PER_ROLLOUT
from tests.unit.recurrent_references import Counting

slow = pytest.mark.slow
NUM_ROLLOUTS = 12


def with_memory(config: TrainConfig, kind: str) -> TrainConfig:
    keep = sections.checkpoint(interval=STEPS_PER_ROLLOUT, keep=100)
    network = replace(config.network, memory=kind, memory_size=6)
    steps = NUM_ROLLOUTS * STEPS_PER_ROLLOUT
    return replace(config, network=network, checkpoint=keep, total_steps=steps)


def rich_config(kind: str, algo: str, runner: str) -> TrainConfig:
    """Returns a run with a memory, masks, `Dict` observations and normalized observations."""
    env = sections.gym(
        "tests.unit.masked_env:Masked-v0",
        kwargs={"in_obs": True, "sizes": (4, 3)},
        mask_actions=True,
        normalize_obs=True,
    )
    config = replace(harness.small_config("gaussian", algo, runner=runner), env=env)
    return with_memory(config, kind)


@pytest.mark.parametrize(
    ("kind", "algo", "fixed_rows"),
    [
        ("lstm", "vtrace", False),
        pytest.param("gru", "a2c", False, marks=slow),
        pytest.param("gru", "ppo", True, marks=slow),
        pytest.param("lstm", "impala", False, marks=slow),
    ],
)
def test_workers_runners_and_resumes_change_nothing(
    kind: str, algo: str, fixed_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fixed_rows:
        monkeypatch.setattr(wiring, "has_free_rows", lambda *_: False)
    expected = harness.run(rich_config(kind, algo, "serial"), tmp_path / "serial")
    config = rich_config(kind, algo, "hts")
    by_others = harness.with_workers(config, 3, 2, 2)
    assert harness.run(by_others, tmp_path / "hts") == expected
    files = sorted((tmp_path / "hts" / "checkpoints").glob("*.ckpt"))
    by_more = harness.with_workers(config, 5, 1, 1)
    assert harness.run(by_more, tmp_path / "hts", files[7]) == expected
    assert json.loads((tmp_path / "hts" / "summary.json").read_text())["is_exact"] is True


@pytest.mark.parametrize("kind", ["lstm", pytest.param("gru", marks=slow)])
def test_sync_repeats_itself_and_resumes(kind: str, tmp_path: Path) -> None:
    config = rich_config(kind, "ppo", "sync")
    expected = harness.run(harness.with_workers(config, 4, 1, 2), tmp_path / "first")
    assert harness.run(harness.with_workers(config, 2, 1, 1), tmp_path / "second") == expected
    files = sorted((tmp_path / "first" / "checkpoints").glob("*.ckpt"))
    by_others = harness.with_workers(config, 3, 1, 1)
    assert harness.run(by_others, tmp_path / "first", files[5]) == expected
    # Nothing is reevaluated here, so that the first ratios compare the learner with the actors.
    once = replace(harness.PPO, update_epochs=1, num_minibatches=1)
    found = harness.run(replace(config, algo=once), tmp_path / "once")
    assert all(abs(line["loss/kl"]) < 1e-6 for line in found.metrics)
    assert all(line["loss/clip_fraction"] == 0 for line in found.metrics)


@pytest.mark.parametrize(("kind", "num_players"), [("gru", 1), pytest.param("lstm", 3, marks=slow)])
def test_a_replay_of_an_asynchronous_run(kind: str, num_players: int, tmp_path: Path) -> None:
    config = replaying.free_config("players" if num_players > 1 else "truncating")
    config = with_memory(config, kind)
    # An undisturbed run has an even timing: the learner is the slowest.
    with torment(seed=2):
        run = replaying.record(config, tmp_path / "recorded")
    assert run.replay(tmp_path / "replay", 4, 1, 2) == run.fingerprint
    files = sorted((tmp_path / "replay" / "checkpoints").glob("*.ckpt"))
    again = run.replay(tmp_path / "replay", 3, 2, 1, checkpoint=files[5])
    assert again == run.fingerprint
    assert json.loads((tmp_path / "replay" / "summary.json").read_text())["is_exact"] is True


@slow
@pytest.mark.parametrize(("kind", "algo"), [("lstm", "ppo"), ("gru", "vtrace")])
def test_kills(kind: str, algo: str, tmp_path: Path) -> None:
    config = resuming.long_config(100, "truncating", algo)
    config = replace(config, network=replace(config.network, memory=kind, memory_size=6))
    expected = harness.run(config, tmp_path / "uninterrupted")
    killed, _ = resuming.kill_and_resume(config, 4, tmp_path)
    assert killed >= 2
    assert harness.fingerprint(tmp_path / "run") == expected


# The learner's evaluation of a slot


def stored_slot(checkpoint: Checkpoint) -> Slot:
    """Returns the slot of a checkpoint, which the actors filled with the previous parameters."""
    arrays = checkpoint.arrays.items()
    return Slot({name[5:]: array for name, array in arrays if name.startswith("slot/")})


def evaluated(config: TrainConfig, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Returns what the learner recomputes: log-probabilities [T, B] and values [T + 1, B]."""
    set_up_torch()
    env, cpu, slot = make_env(config.env, 0), torch.device("cpu"), stored_slot(checkpoint)
    engine = engine_for(cpu)(
        env.env_spec,
        config.network,
        config.algo,
        build_algorithm(config.algo),
        config.learner,
        cpu,
        1,
        config.actors.inference_batch,
    )
    env.close()
    names = engine._policies.state_dict()
    arrays = (checkpoint.arrays[f"learner/previous/{name}"] for name in names)
    engine.load([torch.from_numpy(array) for array in arrays])
    obs, actions, masks = (
        None if array is None else torch.from_numpy(array).flatten(0, 1)
        for array in (slot.obs, slot.actions, None if slot.masks is None else slot.masks[:-1])
    )
    assert obs is not None
    assert actions is not None
    found, _ = engine.evaluate(obs, actions, masks, Sequences.of(slot, cpu))
    engine.close()
    shape = slot.values.shape
    return found.log_probs.view(-1, shape[1]), found.values.view(shape)


@pytest.mark.parametrize(
    ("env", "algo", "batch"),
    [
        ("rich", "vtrace", 8),
        ("gaussian", "ppo", 5),
        pytest.param("atari", "a2c", 8, marks=slow),
        pytest.param("truncating", "impala", 16, marks=slow),
    ],
)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recomputation_has_the_bits_of_the_actors(
    kind: str, env: str, algo: str, batch: int, tmp_path: Path
) -> None:
    config = rich_config(kind, algo, "serial")
    if env != "rich":
        config = with_memory(harness.small_config(env, algo, runner="serial"), kind)
    actors = replace(config.actors, inference_batch=batch)
    config = replace(config, actors=actors, total_steps=4 * STEPS_PER_ROLLOUT)
    harness.run(config, tmp_path)
    for path in sorted((tmp_path / "checkpoints").glob("*.ckpt"))[1:]:
        checkpoint = load_checkpoint(path)
        slot = stored_slot(checkpoint)
        log_probs, values = evaluated(config, checkpoint)
        assert log_probs.numpy().tobytes() == slot.log_probs.tobytes()
        assert values.numpy().tobytes() == slot.values.tobytes()


# Where the memory begins anew


@pytest.mark.parametrize("runner", ["serial", pytest.param("hts", marks=slow)])
@pytest.mark.parametrize("truncate", [False, True])
def test_a_memory_begins_anew_exactly_where_an_episode_begins(
    runner: str, truncate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recurrent._CELLS, "gru", Counting)
    env = sections.synthetic("count", episode_length=7, truncate=truncate)
    config = replace(harness.small_config("truncating", "ppo", runner=runner), env=env)
    # Actors in threads use the cell of this process.
    actors = replace(config.actors, host="thread")
    harness.run(with_memory(replace(config, actors=actors), "gru"), tmp_path)
    seen: list[Any] = []
    for path in sorted((tmp_path / "checkpoints").glob("*.ckpt")):
        arrays = load_checkpoint(path).arrays
        # The env step of the current observations.
        steps = arrays["envs/obs"][:, 2]
        assert (arrays["envs/memories"] == steps[:, None]).all()
        seen += steps.tolist()
    assert set(seen) == set(range(7))
    for before, after in pairwise(harness.slots(tmp_path)):
        assert np.array_equal(after["memories"][0, :, 0], after["obs"][0, :, 2])
        assert np.array_equal(before["obs"][-1], after["obs"][0])
