"""`htsrl eval`: whole games played with a trained policy, their raw scores and videos.

The games are played with the most likely actions (*greedy*), with sampled actions, or once with
each. Both kinds of actions meet the same resets.

A game is a whole episode of the environment itself, for example all lives in Atari, or a match in
football. Playing needs only the parameters and `meta` of a checkpoint. The seed and the game's
number determine the game's resets and action noise. Forward passes have the same constant shape as
in the run. If the result for an observation depends on its position in a batch, each game gets its
own passes. Scores therefore do not depend on how many games are played side by side, unless the
network mixes the observations of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.checkpoints.store import open_checkpoint
from htsrl_cli.config.sections import EvalConfig, TrainConfig
from htsrl_cli.envs.base import Array, Env, action_mask
from htsrl_cli.envs.registry import make_env
from htsrl_cli.evaluation.marks import Marks
from htsrl_cli.evaluation.passes import Passes, refuse_named_code, stored_config
from htsrl_cli.evaluation.result import (
    KINDS,
    VIDEO_FOLDER,
    EvalResult,
    result_folder,
    scores,
    table,
    write,
)
from htsrl_cli.evaluation.video import Video, VideoFolder
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.seeding import Purpose, draw_noise, generator, reset_seed
from htsrl_cli.storage.slot import Episode

logger = logging.getLogger(__name__)


def evaluate(config: EvalConfig) -> EvalResult:
    """Plays games with the policy of a checkpoint; prints, stores and returns the scores.

    The results are written to `eval.json`, and any videos to `videos/`, in the run's folder. If the
    checkpoint is not in a folder named `checkpoints`, they are written next to the checkpoint.

    Raises:
        CheckpointError: there is no intact checkpoint, or the checkpoint does not fit the
            environment or this version of htsrl.
        ConfigError: the environment, the network, the device or the renderer is not available here,
            or videos cannot be written.
    """
    set_up_torch()
    path, checkpoint = open_checkpoint(Path(config.checkpoint))
    if not config.trusted:
        refuse_named_code(stored_config(checkpoint, path), path, "false", "trusted=true")
    found = {}
    for kind, greedy in KINDS.items():
        if config.greedy not in (None, greedy):
            continue
        with ExitStack() as stack:
            videos = None
            if config.video:
                folder = VideoFolder(result_folder(path) / VIDEO_FOLDER, kind + "_{:04}.mp4")
                videos = stack.enter_context(folder)
            own = replace(config, greedy=greedy)
            episodes = play(checkpoint, own, path, videos=videos)
        found[kind] = scores(episodes, config.seed)
    result = EvalResult(str(path), checkpoint.meta["env_steps"], config.seed, found)
    Console().print(table(result))
    write(result, path)
    return result


def play(
    checkpoint: Checkpoint,
    config: EvalConfig,
    path: Path,
    side_by_side: int | None = None,
    videos: VideoFolder | None = None,
    marks: Marks | None = None,
) -> list[Episode]:
    """Plays `config.episodes` games; returns their results in order of the games' numbers.

    Args:
        checkpoint: a complete checkpoint, or one with only the policy's parameters and `meta`.
        config: number of games, seed, kind of actions (not null), and renderer of the videos.
        path: path of the checkpoint, for error messages.
        side_by_side: number of games to play at a time; None to choose it by `_most_games`.
        videos: the folder for videos of the games; None to film nothing.
        marks: the marks that a watcher reads; None if there is no watcher.

    Raises:
        CheckpointError: the checkpoint does not fit the environment or this version of htsrl.
        ConfigError: the environment, the network, the device or the renderer is not available here.
    """
    assert config.greedy is not None, "play plays one kind of actions"
    marks = marks or Marks()
    train_config = stored_config(checkpoint, path)
    if config.renderer is not None:
        train_config.env.check_renderer(config.renderer)
    renderer = (config.renderer or train_config.env.usual_renderer) if videos else None
    num_envs = min(config.episodes, side_by_side or _most_games(train_config, renderer))

    def build() -> Env:
        # All environments have index 0. An environment may behave differently with another index,
        # but scores must not depend on which environment plays a game.
        with marks.env():
            return make_env(train_config.env, 0, renderer)

    envs: list[Env] = []
    try:
        for _ in range(num_envs):
            envs.append(build())
        passes = Passes(checkpoint, train_config, envs[0].env_spec, path, config.greedy)
        return _play_games(envs, build, passes, config, videos, marks)
    finally:
        for env in envs:
            env.close()


def _most_games(train_config: TrainConfig, renderer: str | None) -> int:
    """Returns the number of games to play at a time.

    It is 1 if a process can hold only one environment of this kind. Otherwise, it is the number of
    games whose players fit into one forward pass, but at least 1.
    """
    env = train_config.env
    if env.is_alone(renderer):
        return 1
    return max(1, train_config.actors.inference_batch // env.num_columns)


class _Game:
    """One game, from its first reset to its raw score.

    If a lost life ends a training episode, the game continues after a reset. The video has no frame
    for such a reset.

    Args:
        memories: memory states at the beginning of an episode, [P, S].

    Attributes:
        memories: the players' memory states before `obs`, float32 [P, S]; 0 if an episode begins.
        is_stopped: True if the game was stopped at the maximum number of env steps.
    """

    def __init__(
        self,
        env: Env,
        number: int,
        config: EvalConfig,
        video: Video | None,
        marks: Marks,
        memories: Array,
    ) -> None:
        self.number = number
        self.memories = memories
        self._max_steps = config.max_episode_steps
        self._num_steps = 0
        self.is_stopped = False
        self._env = env
        self._marks = marks
        self._seed = config.seed
        self._num_resets = 0
        self._rng = generator(config.seed, Purpose.EVALUATION_ACTIONS, number)
        self._training_return = 0.0
        self.obs = self._reset()
        self._video = video
        self._add_frame()

    def noise(self) -> Array:
        """Draws the noise from which the P players' next actions are sampled, float32 [P, D]."""
        spec = self._env.env_spec
        return draw_noise(self._rng, (spec.num_players, spec.actions.num_dims), spec.actions.kind)

    def step(self, actions: Array) -> Episode | None:
        """Takes one env step with actions [P, D]; returns the result if the game has ended.

        A game also ends at the maximum number of env steps. Its raw score is then not known, so the
        training return takes its place.
        """
        taken = actions if len(actions) > 1 else actions[0]
        with self._marks.env():
            self.obs, reward, terminated, truncated, info = self._env.step(taken)
        self._training_return += float(np.mean(reward))
        self._add_frame()
        self._num_steps += 1
        ended = info.get("episode")
        if ended is None and self._num_steps == self._max_steps:
            logger.warning(
                "game %d: stopped after %d env steps (max_episode_steps); its score is its "
                "training return so far",
                self.number,
                self._num_steps,
            )
            self.is_stopped = True
            ended = {"r": self._training_return, "l": self._num_steps}
        if ended is not None:
            if self._video:
                self._video.finish()
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
        self.memories = np.zeros_like(self.memories)
        seed = reset_seed(self._seed, *address, Purpose.EVALUATION_RESETS)
        with self._marks.env():
            obs, _ = self._env.reset(seed=seed)
        return obs


def _play_games(
    envs: list[Env],
    build: Callable[[], Env],
    passes: Passes,
    config: EvalConfig,
    videos: VideoFolder | None,
    marks: Marks,
) -> list[Episode]:
    def begin(env: Env, number: int) -> _Game:
        video = videos.video(env, number) if videos else None
        return _Game(env, number, config, video, marks, passes.first_memories(1)[0])

    games = {row: begin(env, row) for row, env in enumerate(envs)}
    started = len(games)
    results: dict[int, Episode] = {}
    while games:
        with marks.forward_pass():
            obs = np.stack([game.obs for game in games.values()])
            noise = np.stack([game.noise() for game in games.values()])
            masks = None
            if envs[0].env_spec.has_masks:
                masks = np.stack([action_mask(envs[row]) for row in games])
            memories = np.stack([game.memories for game in games.values()])
            actions = passes.act(obs, noise, memories, masks)
        for (row, game), chosen, after in zip(list(games.items()), actions, memories, strict=True):
            game.memories = after
            result = game.step(chosen)
            if result is None:
                continue
            results[game.number] = result
            logger.info(
                "game %d (%s actions): score %g in %d env steps",
                game.number,
                "greedy" if config.greedy else "sampled",
                result.raw_return,
                result.length,
            )
            del games[row]
            if started < config.episodes:
                if game.is_stopped:
                    # The next reset of this environment could continue the stopped game.
                    envs[row].close()
                    envs[row] = build()
                games[row] = begin(envs[row], started)
                started += 1
    return [results[number] for number in range(config.episodes)]
