"""The auditor: runs agree bit for bit with an independent replay, which notices any difference."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from htsrl_cli.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from htsrl_cli.config.kinds import AlgoConfig, EnvConfig
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.synthetic.environment import SleepEnv
from htsrl_cli.runners.run import train
from htsrl_cli.sampling import actor as actor_module
from htsrl_cli.sampling.actor import Actor
from htsrl_cli.sampling.inference import Inference
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.storage.ring import Ring
from tests import sections
from tests.determinism import auditor
from tests.determinism.auditor import Array, Audit, AuditError, audit
from tests.harness import IMAGE_PRECISION, NEEDS_BF16

NUM_ENVS = 6
NUM_STEPS = 16

BREAKOUT = sections.atari("breakout", max_num_frames_per_episode=600)
SMALL_BREAKOUT = replace(BREAKOUT, screen_size=44, frame_stack=2)
SLEEP = sections.synthetic("sleep", distribution="exponential", mean_ms=0.2, episode_length=11)
COUNT = sections.synthetic("count", episode_length=7, truncate=True)
PENDULUM = sections.gym("Pendulum-v1", max_episode_steps=9)
TEAM = replace(SLEEP, num_players=3)
CUT_TEAM = replace(COUNT, num_players=3)
PPO = sections.ppo(learning_rate=1e-3, update_epochs=2, num_minibatches=2)
A2C = sections.a2c(learning_rate=1e-3)
# One policy for each player.
PPO_EACH = replace(PPO, policies="independent")
A2C_EACH = replace(A2C, policies="independent")


def make_config(
    env: EnvConfig, algo: AlgoConfig, runner: str, precision: str, num_rollouts: int
) -> TrainConfig:
    """Returns the configuration of a small run with a checkpoint at every barrier.

    6 environments share passes of 4 rows: every pass mixes environments, and some are not full.
    """
    actors = sections.actors(
        num_envs=NUM_ENVS,
        num_executors=2,
        num_actors=1 if runner == "sync" else 2,
        inference_batch=4,
        device="cpu",
        precision=precision,
    )
    steps = NUM_ENVS * NUM_STEPS
    return sections.train(
        env=env,
        algo=algo,
        actors=actors,
        learner=sections.learner(device="cpu", precision=precision, micro_batch=48),
        runner=sections.runner(runner, sync_interval=NUM_STEPS),
        checkpoint=sections.checkpoint(interval=steps, keep=1000),
        log=sections.log(interval=steps, tensorboard=False),
        seed=7,
        total_steps=num_rollouts * steps,
    )


def with_memory(config: TrainConfig, kind: str) -> TrainConfig:
    return replace(config, network=replace(config.network, memory=kind, memory_size=5))


def run_and_audit(config: TrainConfig, run_dir: Path) -> Audit:
    train(config, run_dir)
    found = audit(run_dir)
    num_rollouts = config.total_steps // (NUM_ENVS * NUM_STEPS)
    lag = 0 if config.runner.name == "sync" else 1
    assert found.links == num_rollouts
    assert found.slots == lag * num_rollouts
    # Every update changed the parameters, so that a stale version would have been noticed.
    assert found.learned == num_rollouts - lag
    return found


ATARI = [
    pytest.param(SMALL_BREAKOUT, PPO, "hts", "fp32"),
    *(
        pytest.param(
            *(SMALL_BREAKOUT, A2C, "sync", precision),
            marks=() if precision == IMAGE_PRECISION else pytest.mark.slow,
        )
        for precision in ("fp32", "bf16")
    ),
    *(
        pytest.param(BREAKOUT, algo, runner, precision, marks=[pytest.mark.slow, *marks])
        for runner in ("hts", "serial", "sync")
        for algo, precision, marks in ((A2C, "fp32", []), (PPO, "bf16", [NEEDS_BF16]))
    ),
]


@pytest.mark.parametrize(("env", "algo", "runner", "precision"), ATARI)
def test_atari_replays_over_lives_games_and_truncations(
    env: EnvConfig, algo: AlgoConfig, runner: str, precision: str, tmp_path: Path
) -> None:
    found = run_and_audit(make_config(env, algo, runner, precision, 12), tmp_path)
    assert found.life_losses > 0
    assert found.games > 0
    assert found.truncations > 0


VECTORS = [
    pytest.param(env, algo, runner, precision, marks=marks)
    for env, algo, runner, precision, marks in (
        (SLEEP, PPO, "hts", "bf16", ()),
        (COUNT, A2C, "serial", "fp32", ()),
        (PENDULUM, PPO, "serial", "fp32", ()),
        (PENDULUM, A2C, "hts", "fp32", pytest.mark.slow),
        (PENDULUM, A2C, "sync", "bf16", pytest.mark.slow),
        (COUNT, PPO, "hts", "fp32", pytest.mark.slow),
        (COUNT, PPO, "sync", "fp32", pytest.mark.slow),
        (COUNT, PPO, "serial", "bf16", pytest.mark.slow),
        (SLEEP, A2C, "hts", "fp32", pytest.mark.slow),
        (SLEEP, A2C, "serial", "bf16", pytest.mark.slow),
        (SLEEP, PPO, "sync", "fp32", pytest.mark.slow),
    )
]


@pytest.mark.parametrize(("env", "algo", "runner", "precision"), VECTORS)
def test_vector_observations_replay(
    env: EnvConfig, algo: AlgoConfig, runner: str, precision: str, tmp_path: Path
) -> None:
    found = run_and_audit(make_config(env, algo, runner, precision, 5), tmp_path)
    ended = found.games if env == SLEEP else found.truncations
    # More than one episode ends in a rollout, and some end right at a barrier.
    assert ended >= 5 * NUM_ENVS


TEAMS = [
    pytest.param(env, algo, runner, precision, marks=marks)
    for env, algo, runner, precision, marks in (
        (TEAM, PPO_EACH, "hts", "fp32", ()),
        (CUT_TEAM, A2C, "hts", "bf16", ()),
        (CUT_TEAM, A2C_EACH, "serial", "fp32", ()),
        (CUT_TEAM, PPO_EACH, "hts", "bf16", pytest.mark.slow),
        (CUT_TEAM, PPO, "serial", "fp32", pytest.mark.slow),
        (TEAM, A2C_EACH, "sync", "bf16", pytest.mark.slow),
        (CUT_TEAM, PPO_EACH, "sync", "fp32", pytest.mark.slow),
        (TEAM, PPO, "sync", "bf16", pytest.mark.slow),
        (TEAM, A2C_EACH, "hts", "fp32", pytest.mark.slow),
        (TEAM, PPO, "hts", "fp32", pytest.mark.slow),
    )
]


@pytest.mark.parametrize(("env", "algo", "runner", "precision"), TEAMS)
def test_several_players_replay(
    env: EnvConfig, algo: AlgoConfig, runner: str, precision: str, tmp_path: Path
) -> None:
    """Covers 18 columns of 6 environments: a policy's 6 columns need two passes of 4 rows."""
    found = run_and_audit(make_config(env, algo, runner, precision, 5), tmp_path)
    # A game counts in its first player's column; a truncation ends all players' columns.
    assert (found.games if env == TEAM else found.truncations / 3) >= 5 * NUM_ENVS


@pytest.mark.parametrize(
    ("kind", "env", "algo", "runner", "precision"),
    [
        pytest.param(kind, env, algo, runner, precision, marks=marks)
        for kind, env, algo, runner, precision, marks in (
            ("lstm", SLEEP, PPO, "hts", "fp32", ()),
            ("gru", CUT_TEAM, A2C_EACH, "serial", "fp32", ()),
            ("lstm", COUNT, A2C, "sync", "bf16", pytest.mark.slow),
            ("gru", PENDULUM, PPO, "hts", "bf16", pytest.mark.slow),
            ("gru", SMALL_BREAKOUT, PPO, "hts", "fp32", pytest.mark.slow),
            ("lstm", TEAM, PPO, "sync", "fp32", pytest.mark.slow),
        )
    ],
)
def test_memories_replay(
    kind: str, env: EnvConfig, algo: AlgoConfig, runner: str, precision: str, tmp_path: Path
) -> None:
    config = make_config(env, algo, runner, precision, 12)
    found = run_and_audit(with_memory(config, kind), tmp_path)
    # Every end of an episode resets the memory: of Breakout's, most are lost lives.
    assert found.life_losses + found.games + found.truncations > 10


# Errors that the replay must notice, in a run that is correct except for one of them


def test_shares_no_code_with_what_moves_experience() -> None:
    tree = ast.parse(Path(auditor.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    parts = ("storage", "sampling", "runners", "workers", "learning", "seeding")
    used = {(module or "").partition(".")[2].partition(".")[0] for module in imported}
    assert "config" in used
    assert not used & set(parts)


@pytest.fixture
def small() -> TrainConfig:
    """Returns the configuration of five rollouts in one thread, with truncations in each."""
    sleepless = replace(SLEEP, mean_ms=0.0, truncate=True)
    return make_config(sleepless, A2C, "serial", "fp32", 5)


def audit_injected(config: TrainConfig, run_dir: Path, patch: pytest.MonkeyPatch) -> None:
    train(config, run_dir)
    patch.undo()
    audit(run_dir)


def swap_rows(patch: pytest.MonkeyPatch, at_call: int) -> None:
    """Makes two rows of one of the actor's forward passes get each other's results."""
    calls = [0]

    class Swapped(Inference):
        def run(self, policy: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            results = super().run(policy)
            calls[0] += 1
            if calls[0] != at_call:
                return results
            order = torch.tensor([1, 0, *range(2, len(results[0]))])
            actions, log_probs, values = (result[order] for result in results)
            return actions, log_probs, values

    patch.setattr(actor_module, "Inference", Swapped)


def test_notices_swapped_rows(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap_rows(monkeypatch, at_call=96)
    with pytest.raises(AuditError, match=r"^rollout 2, \w+ at step \d+, column \d: the run has"):
        audit_injected(small, tmp_path, monkeypatch)


def test_notices_the_policy_of_another_player(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses another player's policy in one pass, after the policies have become different."""
    calls = [0]

    class Next(Inference):
        def run(self, policy: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            calls[0] += 1
            # A rollout has 17 * 3 * 2 passes: 16 env steps and the values after them, of three
            # policies with two passes each.
            return super().run((policy + (calls[0] == 246)) % len(self.policies))

    monkeypatch.setattr(actor_module, "Inference", Next)
    team = replace(small, env=TEAM, algo=A2C_EACH)
    with pytest.raises(AuditError, match=r"^rollout 2, \w+ at step 6, column \d+"):
        audit_injected(team, tmp_path, monkeypatch)


def test_notices_swapped_players(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gives two players of an environment each other's rewards."""
    step = SleepEnv._rewards

    def reversed_once(self: SleepEnv, actions: Array) -> Array:
        rewards = step(self, actions)
        return rewards[::-1] if self._total_steps == 40 else rewards

    monkeypatch.setattr(SleepEnv, "_rewards", reversed_once)
    team = replace(small, env=TEAM, algo=A2C_EACH)
    with pytest.raises(AuditError, match=r"^rollout 2, rewards at step 7, column \d+: the run has"):
        audit_injected(team, tmp_path, monkeypatch)


def test_notices_an_off_by_one_at_the_barrier(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Ring.begin

    def begin_with_row_before_last(self: Ring, rollout: int, obs: Array, noise: Array) -> None:
        begin(self, rollout, self.slot(rollout - 1).obs[-2] if rollout == 3 else obs, noise)

    monkeypatch.setattr(Ring, "begin", begin_with_row_before_last)
    with pytest.raises(AuditError, match=r"^rollout 3, first observations \(0, 0\): the run has"):
        audit_injected(small, tmp_path, monkeypatch)


def test_notices_stale_parameters(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = ParameterStore.publish

    def publish_version_only(self: ParameterStore, version: int) -> None:
        if version == 3:
            for name, array in self.place(2).items():
                self.place(3)[name][...] = array
        publish(self, version)

    monkeypatch.setattr(ParameterStore, "publish", publish_version_only)
    with pytest.raises(AuditError, match=r"^rollout 3, (actions|log_probs|values) at step 0"):
        audit_injected(small, tmp_path, monkeypatch)


def flip(array: Array, at: tuple[int, ...]) -> None:
    """Changes the lowest bit of one cell."""
    array.view(f"u{array.itemsize}")[at] ^= 1


CELLS = [
    ("obs", (NUM_STEPS, 5, 2)),
    ("noise", (3, 1, 0)),
    ("actions", (3, 1, 0)),
    ("log_probs", (0, 0)),
    ("values", (NUM_STEPS, 4)),
    ("versions", (NUM_STEPS, 2)),
    ("rewards", (15, 5)),
    ("terminated", (1, 0)),
    ("truncated", (15, 5)),
    ("final_values", (10, 3)),
    ("episode_returns", (10, 0)),
    ("training_returns", (10, 1)),
    ("episode_lengths", (4, 4)),
]


def test_notices_a_single_bit_of_any_array(small: TrainConfig, tmp_path: Path) -> None:
    train(small, tmp_path)
    audit(tmp_path)
    path = checkpoint_path(tmp_path, 2)
    intact = load_checkpoint(path)
    assert {f"slot/{name}" for name, _ in CELLS} == {n for n in intact.arrays if "slot/" in n}
    for name, at in CELLS:
        arrays = {key: array.copy() for key, array in intact.arrays.items()}
        flip(arrays[f"slot/{name}"], at)
        save_checkpoint(path, Checkpoint(arrays, intact.meta))
        where = f"^rollout 1, {name} at step {at[0]}, column {at[1]}.*: the run has"
        with pytest.raises(AuditError, match=where):
            audit(tmp_path)


def test_notices_a_single_bit_of_a_memory(small: TrainConfig, tmp_path: Path) -> None:
    train(with_memory(small, "lstm"), tmp_path)
    path = checkpoint_path(tmp_path, 2)
    intact = load_checkpoint(path)
    for name, at, words in (
        ("slot/memories", (0, 3, 1), r"rollout 1, memories at step 0, column 3, \[1\]"),
        ("envs/memories", (5, 2), r"rollout 2, first memories \(5, 2\)"),
    ):
        arrays = {key: array.copy() for key, array in intact.arrays.items()}
        flip(arrays[name], at)
        save_checkpoint(path, Checkpoint(arrays, intact.meta))
        with pytest.raises(AuditError, match=f"^{words}: the run has"):
            audit(tmp_path)


@pytest.mark.parametrize("final", [False, True], ids=["next episode", "last observation"])
def test_notices_the_memory_of_another_episode(
    final: bool, small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lets one column keep its memory beyond an episode, or forget it before the last value."""
    fill, broken = Actor._fill_memories, [False]

    def fill_wrongly(self: Actor, rows: Array, columns: Array, steps: Array) -> None:
        fill(self, rows, columns, steps)
        assert self._inference.memories is not None
        wrong = steps < 0 if final else ~self._inference.memories[rows].any(axis=1)
        if self._ring.rollout == 2 and wrong.any() and not broken[0]:
            broken[0] = True
            self._inference.memories[rows[wrong][0]] = 0.0 if final else 0.5

    monkeypatch.setattr(Actor, "_fill_memories", fill_wrongly)
    name = "final_values" if final else "(actions|log_probs|values)"
    with pytest.raises(AuditError, match=rf"^rollout 2, {name} at step \d+, column \d"):
        audit_injected(with_memory(small, "gru"), tmp_path, monkeypatch)


def test_the_chain_of_hashes_alone_notices(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Covers the case of `runner=sync`, whose checkpoints hold no slot."""
    swap_rows(monkeypatch, at_call=96)
    train(small, tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        stored = load_checkpoint(path)
        kept = {name: a for name, a in stored.arrays.items() if not name.startswith("slot/")}
        save_checkpoint(path, Checkpoint(kept, stored.meta))
    with pytest.raises(AuditError, match=r"^rollout 2: the hash of its slot is another"):
        audit(tmp_path)


def test_notices_another_summary(small: TrainConfig, tmp_path: Path) -> None:
    """Covers the last slot of a run, which only the hash in the summary includes."""
    train(small, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"rollouts_sha256": "00"}))
    with pytest.raises(AuditError, match=r"^summary: rollouts_sha256 is 00, the replay has"):
        audit(tmp_path)


def checkpoint_path(run_dir: Path, rollout: int) -> Path:
    return sorted((run_dir / "checkpoints").iterdir())[rollout]
