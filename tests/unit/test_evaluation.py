"""Tests that evaluation plays whole games, each independent of the games beside it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from htsrl_cli.checkpoints.file import Checkpoint, save_checkpoint
from htsrl_cli.checkpoints.store import CheckpointStore
from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.plain import to_plain
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import ActionSpec, Array, EnvSpec
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import CheckpointError
from htsrl_cli.evaluation import play as evaluation
from htsrl_cli.evaluation.result import spread
from htsrl_cli.networks.activations import Layer, relu_layer
from htsrl_cli.networks.actor_critic import ActorCritic
from htsrl_cli.networks.distributions import sample
from htsrl_cli.networks.registry import build_policies, build_policy, initial_policies
from htsrl_cli.sampling import inference as inference_module
from htsrl_cli.seeding import Purpose, draw_noise, generator, reset_seed
from tests import sections

CARTPOLE = sections.gym("CartPole-v1")
PATH = Path("some.ckpt")


def train_config(env: EnvConfig, **actors: Any) -> TrainConfig:
    return sections.train(
        env=env,
        algo=sections.ppo(),
        actors=sections.actors(device="cpu", **actors),
        learner=sections.learner(),
        runner=sections.runner(),
        checkpoint=sections.checkpoint(),
        log=sections.log(),
    )


def make_checkpoint(
    env: EnvConfig, spec: EnvSpec | None = None, memory: str = "none", **actors: Any
) -> Checkpoint:
    """Returns a checkpoint of a run with untrained parameters."""
    if spec is None:
        probe = make_env(env, 0)
        spec = probe.env_spec
        probe.close()
    config = train_config(env, **actors)
    config = replace(config, network=replace(config.network, memory=memory, memory_size=16))
    policies = initial_policies(spec, config.network, config.algo, seed=1)
    (policy,) = policies
    assert isinstance(policy, ActorCritic)
    with torch.no_grad():  # a clearly non-uniform policy, so that parameters matter
        policy.policy_head.weight.mul_(50 if memory == "none" else 1000)
    arrays = {f"learner/params/{n}": p.detach().numpy() for n, p in policies.named_parameters()}
    meta = {"config": to_plain(config), "env_steps": 1234, "env_spec": asdict(spec)}
    return Checkpoint(arrays, json.loads(json.dumps(meta)))


def play(checkpoint: Checkpoint, side_by_side: int | None = None, **config: Any) -> list[Any]:
    keys = sections.eval("", **{"greedy": False} | config)
    return evaluation.play(checkpoint, keys, PATH, side_by_side)


class LivesEnv:
    """A game of three lives that records its calls; a life lasts 1 + seed % 4 env steps."""

    env_spec = EnvSpec((2,), "float32", ActionSpec("categorical", sizes=(3, 2)))

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.closed = False
        self._lives = 0

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        if self._lives == 0:
            self._lives, self._score, self._length = 3, 0.0, 0
        self.seeds.append(seed)
        self._left = 1 + seed % 4
        return np.array([self._lives, seed % 7], np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert action.shape == (2,)
        self._left -= 1
        self._length += 1
        self._score += 10 * int(action[0]) + int(action[1])
        lost = self._left == 0
        self._lives -= lost
        over = self._lives == 0
        info = {"episode": {"r": self._score, "l": self._length}} if over else {}
        obs = np.array([self._lives, self._length], np.float32)
        return obs, 0.0, lost and not over, over, info

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def lives_envs(monkeypatch: pytest.MonkeyPatch) -> list[LivesEnv]:
    """Replaces `make_env`; returns the list of environments that it builds."""
    made: list[LivesEnv] = []

    def make(config: object, index: int, renderer: str | None) -> LivesEnv:
        assert (index, renderer) == (0, None)
        made.append(LivesEnv())
        return made[-1]

    monkeypatch.setattr(evaluation, "make_env", make)
    return made


@pytest.mark.parametrize("side_by_side", [1, 2, 3, 8])
@pytest.mark.parametrize("greedy", [False, True])
def test_scores_do_not_depend_on_the_games_beside(side_by_side: int, greedy: bool) -> None:
    checkpoint = make_checkpoint(CARTPOLE)
    expected = play(checkpoint, episodes=11, greedy=greedy)
    assert len(set(expected)) > 1
    assert play(checkpoint, side_by_side, episodes=11, greedy=greedy) == expected
    # The number of games does not matter, either.
    assert play(checkpoint, side_by_side, episodes=4, greedy=greedy) == expected[:4]


class Positional(ActorCritic):
    """A policy whose logits depend on the position in the batch."""

    def forward(self, obs: Tensor, layer: Layer = relu_layer) -> tuple[Tensor, Tensor]:
        params, values = super().forward(obs, layer)
        return params * (1 + torch.arange(len(params)).view(-1, 1)), values


def test_scores_do_not_depend_on_the_games_beside_where_positions_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(*args: Any) -> nn.ModuleList:
        (policy,) = build_policies(*args)
        assert isinstance(policy, ActorCritic)
        return nn.ModuleList([Positional(args[0], policy.trunk, policy.value_trunk)])

    monkeypatch.setattr(inference_module, "build_policies", build)
    checkpoint = make_checkpoint(CARTPOLE)
    expected = play(checkpoint, 1, episodes=6)
    assert len(set(expected)) > 1
    for side_by_side in (2, 3, 6):
        assert play(checkpoint, side_by_side, episodes=6) == expected


def test_the_seed_decides_and_greedy_play_differs() -> None:
    checkpoint = make_checkpoint(CARTPOLE)
    first = play(checkpoint, episodes=6, seed=1)
    assert play(checkpoint, episodes=6, seed=1) == first
    assert play(checkpoint, episodes=6, seed=2) != first
    assert play(checkpoint, episodes=6, seed=1, greedy=True) != first


def slowly(checkpoint: Checkpoint, config: TrainConfig, seed: int, number: int) -> Any:
    """Plays one game in the simplest way."""
    env = make_env(config.env, 0)
    policy = build_policy(env.env_spec, config.network, "fp32", torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.copy_(torch.from_numpy(checkpoint.arrays[f"learner/params/0.{name}"]))
    rng = generator(seed, Purpose.EVALUATION_ACTIONS, number)
    actions, num_resets = env.env_spec.actions, 0
    info: dict[str, Any] = {}
    training_return = 0.0
    ended = True
    while "episode" not in info:
        if ended:
            obs, _ = env.reset(seed=reset_seed(seed, number, num_resets, Purpose.EVALUATION_RESETS))
            num_resets += 1
        rows = torch.from_numpy(np.repeat(obs[None], config.actors.inference_batch, axis=0))
        noise = torch.from_numpy(draw_noise(rng, (1, actions.num_dims), actions.kind))
        with torch.inference_mode():
            chosen, _ = sample(actions, policy(rows)[0][:1], noise)
        obs, reward, terminated, truncated, info = env.step(chosen[0].numpy())
        training_return += float(reward)
        ended = terminated or truncated
    env.close()
    assert num_resets > 1, "no life was lost on the way"
    return info["episode"]["r"], training_return, info["episode"]["l"]


def test_atari_games_are_played_whole_with_their_raw_score() -> None:
    env = sections.atari("breakout", max_num_frames_per_episode=3000)
    checkpoint = make_checkpoint(env)
    config = train_config(env)
    expected = [slowly(checkpoint, config, 5, number) for number in range(3)]
    assert play(checkpoint, episodes=3, seed=5) == expected
    assert play(checkpoint, 2, episodes=3, seed=5) == expected


def test_lost_lives_do_not_end_a_game(lives_envs: list[LivesEnv]) -> None:
    checkpoint = make_checkpoint(CARTPOLE, LivesEnv.env_spec)
    results = play(checkpoint, 1, episodes=5, seed=3)
    (env,) = lives_envs
    assert env.closed
    seeds = [
        [reset_seed(3, number, k, Purpose.EVALUATION_RESETS) for k in range(3)]
        for number in range(5)
    ]
    assert env.seeds == [seed for game in seeds for seed in game]
    assert len(set(env.seeds)) == 15
    assert [game.length for game in results] == [sum(1 + s % 4 for s in game) for game in seeds]
    assert play(checkpoint, 4, episodes=5, seed=3) == results


def test_endless_games_are_stopped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    env = sections.synthetic(name="count", episode_length=1_000_000)
    checkpoint = make_checkpoint(env)
    games = play(checkpoint, episodes=3, side_by_side=2, max_episode_steps=7)
    assert [game.length for game in games] == [7, 7, 7]
    assert all(game.raw_return == game.training_return for game in games)
    assert caplog.text.count("stopped after 7 env steps (max_episode_steps)") == 3


def test_a_stopped_atari_game_is_not_continued() -> None:
    checkpoint = make_checkpoint(sections.atari("breakout"))
    together = play(checkpoint, episodes=2, side_by_side=1, max_episode_steps=60)
    apart = play(checkpoint, episodes=2, side_by_side=2, max_episode_steps=60)
    assert together == apart
    assert [game.length for game in together] == [60, 60]


def test_every_forward_pass_has_the_constant_shape(
    lives_envs: list[LivesEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    forward = ActorCritic.forward

    def recorded(self: ActorCritic, obs: torch.Tensor, *layer: Any) -> Any:
        shapes.append(tuple(obs.shape))
        return forward(self, obs, *layer)

    monkeypatch.setattr(ActorCritic, "forward", recorded)
    play(make_checkpoint(CARTPOLE, LivesEnv.env_spec, inference_batch=4), episodes=6)
    assert set(shapes) == {(4, 2)}
    assert len(lives_envs) == 4


def test_the_actors_precision_is_used(
    lives_envs: list[LivesEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: list[torch.dtype] = []
    forward = ActorCritic.forward

    def recorded(self: ActorCritic, obs: torch.Tensor, *layer: Any) -> Any:
        dtypes.extend(p.dtype for p in self.trunk.parameters())
        return forward(self, obs, *layer)

    monkeypatch.setattr(ActorCritic, "forward", recorded)
    play(make_checkpoint(CARTPOLE, LivesEnv.env_spec, precision="bf16"), episodes=2)
    assert set(dtypes) == {torch.bfloat16}


def test_spread_by_hand() -> None:
    std, interval = spread([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0], seed=0)
    assert std == pytest.approx(math.sqrt(32 / 7))
    assert interval is not None
    # A second implementation: percentiles of the means of resamples, in a loop.
    rng = np.random.default_rng(7)
    means = [rng.choice([2, 4, 4, 4, 5, 5, 7, 9], 8).mean() for _ in range(10_000)]
    assert interval == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.15)


def test_spread_is_seeded() -> None:
    scores = list(np.random.default_rng(0).standard_normal(30))
    assert spread(scores, seed=1) == spread(scores, seed=1)
    assert spread(scores, seed=1) != spread(scores, seed=2)


def test_spread_of_one_game_and_of_equal_scores() -> None:
    assert spread([3.0], seed=0) == (None, None)
    assert spread([21.0] * 10, seed=0) == (0.0, (21.0, 21.0))


def table_rows(output: str) -> list[list[str]]:
    """Returns the cells of a printed table, row by row, with empty first and last cells."""
    lines = [line for line in output.splitlines() if line[:1] in ("│", "┃")]
    return [[cell.strip() for cell in re.split("[│┃]", line)] for line in lines]


@pytest.mark.parametrize(
    ("greedy", "kinds"),
    [(None, ["greedy", "sampled"]), (True, ["greedy"]), (False, ["sampled"])],
)
def test_each_kind_of_actions_is_played_reported_and_stored(
    greedy: bool | None, kinds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(500, 1.0, make_checkpoint(CARTPOLE))
    store.save(1234, 0.5, make_checkpoint(CARTPOLE))
    result = evaluation.evaluate(sections.eval(str(tmp_path), episodes=5, seed=3, greedy=greedy))
    assert result.checkpoint == str(store.path(1234))
    assert list(result.scores) == kinds
    stored = json.loads((tmp_path / "eval.json").read_text())
    assert stored == json.loads(json.dumps(asdict(result)))
    assert stored["env_steps"] == 1234
    output = capsys.readouterr().out
    rows = {name.strip(): cells for _, name, *cells, _ in table_rows(output)}
    assert rows["score"] == [f"{kind} actions" for kind in kinds]
    for column, (kind, found) in enumerate(result.scores.items()):
        games = zip(found.returns, found.training_returns, found.lengths, strict=True)
        expected = play(make_checkpoint(CARTPOLE), episodes=5, seed=3, greedy=kind == "greedy")
        assert list(games) == expected
        assert found.mean == np.mean(found.returns)
        assert rows["mean"][column] == f"{found.mean:.2f}"
        low, high = found.interval or (math.nan, math.nan)
        assert rows["95 % confidence interval"][column] == f"{low:.2f} to {high:.2f}"


def test_one_episode_of_a_file_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, make_checkpoint(CARTPOLE))
    result = evaluation.evaluate(sections.eval(str(path), episodes=1))
    for found in result.scores.values():
        assert (found.std, found.interval) == (None, None)
    assert (tmp_path / "eval.json").exists()
    assert "standard deviation" in capsys.readouterr().out


def test_a_result_that_cannot_be_stored_is_still_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, make_checkpoint(CARTPOLE))
    (tmp_path / "eval.json").mkdir()
    evaluation.evaluate(sections.eval(str(path), episodes=2))
    assert "mean" in capsys.readouterr().out
    assert "the scores are not stored" in caplog.text


def unfit(kind: str) -> Checkpoint:
    checkpoint = make_checkpoint(CARTPOLE)
    arrays, meta = dict(checkpoint.arrays), dict(checkpoint.meta)
    match kind:
        case "spec":
            meta["env_spec"] = meta["env_spec"] | {"obs_shape": [5]}
        case "no spec":
            del meta["env_spec"]
        case "shape":
            arrays["learner/params/0.policy_head.bias"] = np.zeros(3, np.float32)
        case "missing":
            del arrays["learner/params/0.policy_head.bias"]
        case "no config":
            del meta["config"]
        case "old config":
            meta["config"] = meta["config"] | {"forgotten": 1}
    return Checkpoint(arrays, meta)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("spec", "does not fit the installed environment"),
        ("no spec", "does not fit the installed environment"),
        ("shape", r"no parameter 0.policy_head.bias of shape \(2,\)"),
        ("missing", "no parameter 0.policy_head.bias"),
        ("no config", "cannot use the configuration"),
        ("old config", "this version of htsrl cannot use the configuration .*forgotten"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_in_one_line(kind: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        play(unfit(kind), episodes=1)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(PATH))


def test_environments_are_closed_when_a_checkpoint_does_not_fit(
    lives_envs: list[LivesEnv],
) -> None:
    with pytest.raises(CheckpointError):
        play(make_checkpoint(CARTPOLE), episodes=2)
    assert [env.closed for env in lives_envs] == [True, True]


def test_the_settings_of_another_device_are_not_needed() -> None:
    checkpoint = make_checkpoint(CARTPOLE)
    meta = checkpoint.meta
    config = replace(train_config(CARTPOLE), learner=sections.learner(device="cuda:7"))
    meta = meta | {"config": to_plain(config)}
    assert len(play(Checkpoint(checkpoint.arrays, meta), episodes=1)) == 1
