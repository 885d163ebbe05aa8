"""`htsrl eval`: plays whole games with a trained policy, reports their raw scores, makes videos.

Needs a checkpoint's parameters and configuration only. A game's resets and action noise are
addressed by its number, and forward passes have the run's constant shape: scores do not depend on
how many games are played side by side.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from htsrl_cli.checkpoints.file import Checkpoint, find_checkpoint, load_checkpoint
from htsrl_cli.config.plain import from_plain
from htsrl_cli.config.rules import check_renderer
from htsrl_cli.config.sections import EvalConfig, FootballConfig, TrainConfig
from htsrl_cli.durable import write_durably
from htsrl_cli.envs.base import Array, Env, EnvSpec, make_env, usual_renderer
from htsrl_cli.errors import CheckpointError, ConfigError
from htsrl_cli.evaluation.marks import Marks
from htsrl_cli.evaluation.video import Video, VideoFolder
from htsrl_cli.networks.device import resolve_device, set_up_torch
from htsrl_cli.networks.policy import build_policies, mode, sample
from htsrl_cli.seeding import Purpose, draw_noise, generator, reset_seed
from htsrl_cli.storage.storage import Episode
from htsrl_cli.tracking.bootstrap import mean_interval

logger = logging.getLogger(__name__)

RESULT_FILE = "eval.json"
VIDEO_FOLDER = "videos"


@dataclass(frozen=True)
class EvalResult:
    """Scores of an evaluation.

    Attributes:
        checkpoint: the file that was evaluated, and the `env_steps` it was trained for.
        returns: raw score of each game, in order of number.
        training_returns: of each game, the sum of the rewards that are trained on.
        lengths: env steps of each game.
        std: standard deviation of a sample (ddof 1); None for a single game.
        interval: 95 % bootstrap interval of the mean; None for a single game.
    """

    checkpoint: str
    env_steps: int
    seed: int
    greedy: bool
    returns: tuple[float, ...]
    training_returns: tuple[float, ...]
    lengths: tuple[int, ...]
    mean: float
    std: float | None
    interval: tuple[float, float] | None


def run(config: EvalConfig) -> EvalResult:
    """Evaluates a checkpoint, prints a table and writes `eval.json` into the run's folder.

    A file that is not in a run's `checkpoints/` has its `eval.json` and `videos/` next to it.

    Raises:
        CheckpointError: there is no such checkpoint, or it does not fit its environment.
        ConfigError: the environment or the device is not to be had here.
    """
    set_up_torch()
    path = find_checkpoint(Path(config.checkpoint))
    checkpoint = load_checkpoint(path)
    with ExitStack() as stack:
        videos = None
        if config.video:
            videos = stack.enter_context(VideoFolder(_result_folder(path) / VIDEO_FOLDER))
        episodes = play(checkpoint, config, path, videos=videos)
    returns, training_returns, lengths = zip(*episodes, strict=True)
    std, interval = spread(returns, config.seed)
    result = EvalResult(
        checkpoint=str(path),
        env_steps=checkpoint.meta["env_steps"],
        seed=config.seed,
        greedy=config.greedy,
        returns=returns,
        training_returns=training_returns,
        lengths=lengths,
        mean=float(np.mean(returns)),
        std=std,
        interval=interval,
    )
    Console().print(_table(result))
    _write(result, path)
    return result


def play(
    checkpoint: Checkpoint,
    config: EvalConfig,
    path: Path,
    side_by_side: int | None = None,
    videos: VideoFolder | None = None,
    marks: Marks | None = None,
) -> list[Episode]:
    """Plays `config.episodes` games; returns them in order of number.

    Args:
        checkpoint: of a run, or anything with its parameters and `meta`.
        config: the number of games, their seed, and how actions are chosen.
        path: of the checkpoint, for messages.
        side_by_side: games at a time; by default as many as the rows of a forward pass serve.
        videos: films games where it is given.
        marks: what is marked for a watcher.
    """
    marks = marks or Marks()
    train_config = _train_config(checkpoint, path)
    num_rows = train_config.actors.inference_batch
    if config.renderer is not None:
        check_renderer(config.renderer, train_config.env)
    renderer = (config.renderer or usual_renderer(train_config.env)) if videos else None
    num_envs = min(config.episodes, side_by_side or _most_games(train_config, renderer))
    with ExitStack() as stack:
        # All are number 0: an environment may depend on its index, a score must not.
        envs = []
        for _ in range(num_envs):
            with marks.env():
                env = make_env(train_config.env, 0, renderer)
            envs.append(stack.enter_context(closing(env)))
        policies = _load_policies(checkpoint, train_config, envs[0].env_spec, path)
        batch = _Batch(policies, envs[0].env_spec, num_rows, config.greedy)
        return _play_games(envs, batch, config, videos, marks)


def spread(returns: Sequence[float], seed: int) -> tuple[float | None, tuple[float, float] | None]:
    """Standard deviation (ddof 1) and 95 % percentile bootstrap interval of the mean."""
    if len(returns) < 2:
        return None, None
    low, high = mean_interval(np.asarray(returns), seed)
    return float(np.std(returns, ddof=1)), (float(low), float(high))


def _most_games(train_config: TrainConfig, renderer: str | None) -> int:
    """Games at a time that the rows of a forward pass serve; one where football is rendered."""
    env = train_config.env
    if isinstance(env, FootballConfig) and (env.is_rendered or renderer == "engine"):
        return 1
    return max(1, train_config.actors.inference_batch // env.num_players)


class _Game:
    """One whole game, from the first reset to the raw score; lost lives go on with a reset.

    Its video, where there is one, has no picture of those later resets.
    """

    def __init__(self, env: Env, number: int, seed: int, video: Video | None, marks: Marks) -> None:
        self.number = number
        self._env = env
        self._marks = marks
        self._seed = seed
        self._num_resets = 0
        self._rng = generator(seed, Purpose.EVALUATION_ACTIONS, number)
        self._training_return = 0.0
        self.obs = self._reset()
        self._video = video
        self._add_frame()

    def noise(self) -> Array:
        """What samples the players' next actions, float32 [P, D]."""
        spec = self._env.env_spec
        return draw_noise(self._rng, (spec.num_players, spec.actions.num_dims), spec.actions.kind)

    def step(self, actions: Array) -> Episode | None:
        """One env step with actions [P, D]; at the end of the game what it came to."""
        taken = actions if len(actions) > 1 else actions[0]
        with self._marks.env():
            self.obs, reward, terminated, truncated, info = self._env.step(taken)
        self._training_return += float(np.mean(reward))
        self._add_frame()
        if "episode" in info:
            if self._video:
                self._video.finish()
            ended = info["episode"]
            return Episode(float(ended["r"]), self._training_return, int(ended["l"]))
        if terminated or truncated:
            self.obs = self._reset()
        return None

    def _add_frame(self) -> None:
        if self._video:
            self._video.add_frame()

    def _reset(self) -> Array:
        address = (self.number, self._num_resets)
        self._num_resets += 1
        seed = reset_seed(self._seed, *address, Purpose.EVALUATION_RESETS)
        with self._marks.env():
            obs, _ = self._env.reset(seed=seed)
        return obs


class _Batch:
    """Forward passes of constant shape over the players of several games.

    Policy k of K acts for players k, k + K, ...
    """

    def __init__(self, policies: nn.ModuleList, spec: EnvSpec, num_rows: int, greedy: bool) -> None:
        self._policies = policies
        self._spec = spec
        self._greedy = greedy
        self._device = next(policies.parameters()).device
        self._obs = np.zeros((num_rows, *spec.obs_shape), spec.obs_dtype)
        self._noise = np.zeros((num_rows, spec.actions.num_dims), np.float32)

    def act(self, games: Sequence[_Game]) -> Array:
        """Actions [G, P, D] for G games."""
        spec = self._spec
        obs = np.stack([game.obs for game in games]).reshape(-1, *spec.obs_shape)
        noise = np.concatenate([game.noise() for game in games])
        actions = np.empty(noise.shape, spec.actions.dtype)
        for k, policy in enumerate(self._policies):
            own = range(k, len(obs), len(self._policies))
            for start in range(0, len(own), len(self._obs)):
                rows = own[start : start + len(self._obs)]
                actions[rows] = self._pass(policy, obs[rows], noise[rows])
        return actions.reshape(len(games), spec.num_players, -1)

    @torch.inference_mode()
    def _pass(self, policy: nn.Module, obs: Array, noise: Array) -> Array:
        """Actions for at most as many rows as a pass has; the others hold what they last held."""
        self._obs[: len(obs)] = obs
        self._noise[: len(obs)] = noise
        params = policy(torch.from_numpy(self._obs).to(self._device))[0].cpu()
        if self._greedy:
            actions = mode(self._spec.actions, params)
        else:
            actions, _ = sample(self._spec.actions, params, torch.from_numpy(self._noise))
        chosen: Array = actions[: len(obs)].numpy()
        return chosen


def _play_games(
    envs: Sequence[Env],
    batch: _Batch,
    config: EvalConfig,
    videos: VideoFolder | None,
    marks: Marks,
) -> list[Episode]:
    def begin(env: Env, number: int) -> _Game:
        video = videos.video(env, number) if videos else None
        return _Game(env, number, config.seed, video, marks)

    games = {row: begin(env, row) for row, env in enumerate(envs)}
    started = len(games)
    results: dict[int, Episode] = {}
    while games:
        with marks.forward_pass():
            actions = batch.act(list(games.values()))
        for (row, game), chosen in zip(list(games.items()), actions, strict=True):
            result = game.step(chosen)
            if result is None:
                continue
            results[game.number] = result
            logger.info(
                "game %d: score %g in %d env steps", game.number, result.raw_return, result.length
            )
            del games[row]
            if started < config.episodes:
                games[row] = begin(envs[row], started)
                started += 1
    return [results[number] for number in range(config.episodes)]


def _train_config(checkpoint: Checkpoint, path: Path) -> TrainConfig:
    try:
        return from_plain(checkpoint.meta["config"])
    except (KeyError, ConfigError) as error:
        raise CheckpointError(
            f"{path} holds no configuration that this version of htsrl knows ({error})"
        ) from error


def _load_policies(
    checkpoint: Checkpoint, config: TrainConfig, spec: EnvSpec, path: Path
) -> nn.ModuleList:
    """The policies in the actors' precision, with the checkpoint's parameters."""
    if checkpoint.meta.get("env_spec") != json.loads(json.dumps(asdict(spec))):
        raise CheckpointError(
            f"{path} does not fit its environment, which is {spec} here: another version of the "
            "environment's package made it"
        )
    device = resolve_device("actors.device", config.actors.device)
    policies = build_policies(spec, config.algo, config.actors.precision, device)
    with torch.no_grad():
        for name, parameter in policies.named_parameters():
            array = checkpoint.arrays.get(f"params/{name}")
            if array is None or array.shape != tuple(parameter.shape):
                shape = tuple(parameter.shape)
                raise CheckpointError(
                    f"{path} does not fit its environment: "
                    f"it has no parameter {name} of shape {shape}"
                )
            parameter.copy_(torch.from_numpy(array))
    return policies


def _table(result: EvalResult) -> Table:
    table = Table("", "score", title=f"{result.checkpoint} after {result.env_steps:,} env steps")
    how = "most likely" if result.greedy else "sampled"
    rows: dict[str, Any] = {
        "games": f"{len(result.returns)} (seed {result.seed}, {how} actions)",
        "mean": f"{result.mean:.2f}",
        "95 % interval": "-"
        if result.interval is None
        else "{:.2f} to {:.2f}".format(*result.interval),
        "standard deviation": "-" if result.std is None else f"{result.std:.2f}",
        "lowest": f"{min(result.returns):g}",
        "highest": f"{max(result.returns):g}",
        "mean training return": f"{np.mean(result.training_returns):.2f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _write(result: EvalResult, checkpoint: Path) -> None:
    """Writes `eval.json`; the table has been shown, so a failure is only reported."""
    folder = _result_folder(checkpoint)
    content = json.dumps(asdict(result), indent=2).encode() + b"\n"
    try:
        write_durably(folder / RESULT_FILE, lambda file: file.write(content))
    except OSError as error:
        logger.error("%s: %s; the scores are not stored", folder / RESULT_FILE, error.strerror)


def _result_folder(checkpoint: Path) -> Path:
    """The run's folder, or the one of a file elsewhere."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder
