"""Videos: playable files that show every env step, and change no score."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from htsrl_cli.checkpoints.file import Checkpoint, save_checkpoint
from htsrl_cli.checkpoints.store import CheckpointStore
from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.plain import to_plain
from htsrl_cli.envs.base import Array, PicturedEnv
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import ConfigError
from htsrl_cli.evaluation import play as evaluation
from htsrl_cli.evaluation.result import KINDS, EvalResult
from htsrl_cli.evaluation.video import CAPTION_HEIGHT, VideoFolder
from htsrl_cli.tracking.film import animation
from tests import sections
from tests.harness import NO_FOOTBALL, small_config
from tests.unit.test_evaluation import make_checkpoint

CARTPOLE = sections.gym("CartPole-v1")
PONG = sections.atari("pong", max_num_frames_per_episode=200)
FOOTBALL = sections.football("academy_empty_goal_close")


def pictured(config: EnvConfig, renderer: str | None = None) -> PicturedEnv:
    env = make_env(config, 0, renderer or config.usual_renderer)
    assert isinstance(env, PicturedEnv)
    return env


def read_back(path: Path) -> tuple[Array, dict[str, Any]]:
    """Decodes a file; returns its frames, uint8 [frames, H, W, 3], and its properties."""
    file = cv2.VideoCapture(str(path))
    names = {"fps": cv2.CAP_PROP_FPS, "count": cv2.CAP_PROP_FRAME_COUNT}
    codes = {"codec": cv2.CAP_PROP_FOURCC, "pixels": cv2.CAP_PROP_CODEC_PIXEL_FORMAT}
    meta: dict[str, Any] = {name: file.get(number) for name, number in names.items()}
    for name, number in codes.items():
        meta[name] = int(file.get(number)).to_bytes(4, "little").decode()
    frames = []
    while True:
        there_is_one, frame = file.read()
        if not there_is_one:
            break
        frames.append(frame[..., ::-1])
    file.release()
    return np.stack(frames), meta


def evaluate(folder: Path, config: EnvConfig, **keys: Any) -> EvalResult:
    CheckpointStore(folder, keep=1).save(1234, 0.5, make_checkpoint(config, inference_batch=2))
    return evaluation.evaluate(sections.eval(str(folder), **{"greedy": False} | keys))


@pytest.mark.parametrize(
    ("config", "size", "fps"),
    [
        (CARTPOLE, (600, 400), 50),
        (PONG, (480, 630), 15),
        pytest.param(FOOTBALL, (960, 640), 10, id="football"),
    ],
)
def test_every_game_has_a_video_and_the_same_score_as_without(
    tmp_path: Path, config: EnvConfig, size: tuple[int, int], fps: float
) -> None:
    if config == FOOTBALL:
        pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)
    without = evaluate(tmp_path, config, episodes=3, seed=4)
    assert not (tmp_path / "videos").exists()
    with_videos = evaluate(tmp_path, config, episodes=3, seed=4, video=True)
    assert with_videos == without
    files = sorted((tmp_path / "videos").iterdir())
    assert [file.name for file in files] == [f"sampled_{number:04}.mp4" for number in range(3)]
    for file, length in zip(files, without.scores["sampled"].lengths, strict=True):
        frames, meta = read_back(file)
        assert frames.shape == (length + 1, size[1] + CAPTION_HEIGHT, size[0], 3)
        assert meta == {"fps": fps, "count": length + 1, "codec": "h264", "pixels": "I420"}
        assert frames.std(axis=0).max() > 20, "nothing moves"


@pytest.mark.parametrize(("config", "action"), [(CARTPOLE, 1), (FOOTBALL, 5)])
def test_a_video_shows_the_states_that_were_played(
    tmp_path: Path, config: EnvConfig, action: int
) -> None:
    """Compares the video's frames with those of `render`, in order and color."""
    if config == FOOTBALL:
        pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)
    env = pictured(config)
    expected = []
    with VideoFolder(tmp_path) as videos:
        video = videos.video(env, 7)
        assert video is not None
        env.reset(seed=5)
        for _ in range(8):
            video.add_frame()
            expected.append(env.render())
            env.step(np.array([action]))
        video.finish()
    env.close()
    frames, _ = read_back(tmp_path / "game_0007.mp4")
    frames = frames[:, :-CAPTION_HEIGHT]
    errors = [np.abs(frames.astype(int) - picture).mean(axis=(1, 2, 3)) for picture in expected]
    assert [int(np.argmin(row)) for row in errors] == list(range(8))
    assert max(row.min() for row in errors) < 4


def test_captions_tell_score_and_step(tmp_path: Path) -> None:
    """Checks that equal texts give equal captions, and different texts different ones."""
    env = pictured(CARTPOLE)
    with VideoFolder(tmp_path) as videos:
        for number in range(2):
            video = videos.video(env, number)
            assert video is not None
            env.reset(seed=number)
            for _ in range(6):
                video.add_frame()
                env.step(np.array([number]))
            assert env.score == 6
            video.finish()
    first, second = (
        read_back(tmp_path / f"game_{number:04}.mp4")[0][:, -CAPTION_HEIGHT:].astype(int)
        for number in range(2)
    )
    assert np.abs(first - second).mean() < 1
    changes = np.abs(np.diff(first, axis=0)).max(axis=(1, 2, 3))
    assert changes.min() > 100


def test_fewer_games_replace_all_of_before(tmp_path: Path) -> None:
    evaluate(tmp_path, CARTPOLE, episodes=3, video=True)
    videos = tmp_path / "videos"
    others = {"sampled_1.mp4", "sampled_0001.mp4.txt", "my_sampled_0001.mp4", "greedy_0001.mp4"}
    for name in others:
        (videos / name).write_bytes(b"kept")
    (videos / "sampled_12345.mp4").write_bytes(b"of a long evaluation")
    evaluate(tmp_path, CARTPOLE, episodes=1, seed=5, video=True)
    assert {path.name for path in videos.iterdir()} == others | {"sampled_0000.mp4"}
    # The evaluator films one policy after the other like this.
    VideoFolder(videos, "policy_000000000128.mp4", most=1)
    assert {path.name for path in videos.iterdir()} == others | {"sampled_0000.mp4"}


def test_only_the_first_games_are_filmed(tmp_path: Path) -> None:
    env = pictured(CARTPOLE)
    with VideoFolder(tmp_path, "one.mp4", most=1) as videos:
        assert videos.video(env, 0) is not None
        assert videos.video(env, 1) is None


def test_animation_shows_the_beginning_at_the_same_pace(tmp_path: Path) -> None:
    env = pictured(PONG)
    with VideoFolder(tmp_path) as videos:
        video = videos.video(env, 0)
        assert video is not None
        env.reset(seed=1)
        for _ in range(45):
            video.add_frame()
            env.step(np.array([2]))
        video.finish()
    (tmp_path / "game.gif").write_bytes(animation(tmp_path / "game_0000.mp4"))
    with Image.open(tmp_path / "game.gif") as gif:
        assert isinstance(gif, GifImageFile)
        assert gif.size == (240, (630 + CAPTION_HEIGHT) // 2)
        seconds = 0.0
        for number in range(gif.n_frames):
            gif.seek(number)
            seconds += gif.info["duration"] / 1000
        assert gif.n_frames >= 20
    assert seconds == pytest.approx(45 / 15, rel=0.1)
    with pytest.raises(OSError, match="contains no video"):
        animation(tmp_path / "none.mp4")


def test_lost_lives_add_no_pictures(tmp_path: Path) -> None:
    breakout = sections.atari("breakout", max_num_frames_per_episode=1200)
    result = evaluate(tmp_path, breakout, episodes=1, seed=5, video=True)
    frames, _ = read_back(tmp_path / "videos" / "sampled_0000.mp4")
    assert len(frames) == result.scores["sampled"].lengths[0] + 1


def test_a_file_elsewhere_has_its_videos_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, make_checkpoint(CARTPOLE))
    evaluation.evaluate(sections.eval(str(path), episodes=1, video=True))
    for kind in KINDS:
        assert (tmp_path / "videos" / f"{kind}_0000.mp4").exists()


def test_atari_is_seen_in_colour_as_the_agent_sees_it_in_gray() -> None:
    """Checks that what is drawn in only one of two frames is in picture and observation."""
    config = sections.atari("space_invaders")
    env, plain = pictured(config), make_env(config, 0)
    assert env.frame_rate == 15
    rng = np.random.default_rng(0)
    env.reset(seed=1)
    plain.reset(seed=1)
    for _ in range(60):
        action = rng.integers(env.env_spec.actions.sizes)
        obs, *_ = env.step(action)
        same, *_ = plain.step(action)
        assert np.array_equal(obs, same)
        picture = env.render()
        assert picture.shape == (210, 160, 3)
        gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(gray, (84, 84), interpolation=cv2.INTER_AREA)
        # The emulator rounds its gray values differently.
        assert np.abs(small.astype(int) - obs[..., -1]).max() <= 3
    assert np.ptp(picture.astype(int), axis=2).max() > 50, "colourless"


def test_football_is_drawn_where_it_is() -> None:
    pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)
    env = pictured(sections.football("11_vs_11_stochastic"))
    env.reset(seed=3)
    picture = env.render()
    assert picture.shape == (640, 960, 3)
    assert picture.dtype == np.uint8
    again = env.render()
    assert np.array_equal(picture, again)
    env.step(np.array([5]))
    assert not np.array_equal(picture, env.render())
    # The yellow goalkeeper is on the left, the dark blue one on the right.
    yellow = (picture[60:] == (255, 214, 48)).all(axis=2)
    blue = (picture[60:] == (30, 52, 140)).all(axis=2)
    assert yellow.any(axis=0).argmax() < 200
    assert blue.any(axis=0)[::-1].argmax() < 200
    # Eleven discs with a radius of 12 pixels, some partly hidden, minus their numbers.
    assert 2000 < yellow.sum() < 11 * 452
    assert 2000 < blue.sum() < 11 * 452
    env.close()


def test_who_is_controlled_and_who_has_the_ball_is_marked() -> None:
    pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)
    from htsrl_cli.envs.football.match import View
    from htsrl_cli.envs.football.pitch import draw_pitch

    nobody = View(
        ball=np.array([0.5, 0.3, 4.0]),
        ball_direction=np.zeros(3),
        ball_owned_team=-1,
        ball_owned_player=-1,
        own=np.array([[-0.9, 0.0], [0.2, 0.1]]),
        own_direction=np.zeros((2, 2)),
        other=np.array([[0.9, 0.0]]),
        other_direction=np.zeros((1, 2)),
        controlled=(),
        game_mode=0,
    )

    def differs(view: View, controlled_right: tuple[int, ...] = ()) -> tuple[float, float]:
        """Returns x and y in meters of the middle of the difference to the picture of `nobody`."""
        plain = draw_pitch(nobody, (), (0, 0), 1)
        changed = (draw_pitch(view, controlled_right, (0, 0), 1) != plain).any(axis=2)
        rows, columns = np.nonzero(changed)
        return (columns.min() + columns.max() - 960) / 16, (rows.min() + rows.max() - 684) / 16

    own, other = pytest.approx((0.2 * 54.4, 0.1 * 83.6), abs=0.2), pytest.approx((49, 0), abs=0.2)
    assert differs(replace(nobody, controlled=(1,))) == own
    assert differs(nobody, controlled_right=(0, -1)) == other
    assert differs(replace(nobody, ball_owned_team=0, ball_owned_player=1)) == own
    assert differs(replace(nobody, ball_owned_team=1, ball_owned_player=0)) == other


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (sections.synthetic("count"), "this environment cannot be rendered"),
        (sections.gym("Blind-v0"), "Blind-v0 cannot be rendered: it has no render mode rgb_array"),
        (sections.gym("Liar-v0"), r"Liar-v0 cannot be rendered: its render\(\) does not"),
        (sections.gym("Lacking-v0"), "Lacking-v0 cannot be rendered: pip install paint"),
    ],
)
def test_what_has_no_picture_is_refused_in_one_line(
    tmp_path: Path, config: EnvConfig, words: str
) -> None:
    for name in ("Blind", "Liar", "Lacking"):
        if f"{name}-v0" not in gymnasium.registry:
            gymnasium.register(f"{name}-v0", entry_point=f"{__name__}:{name}Env")
    with pytest.raises(ConfigError, match=f"^video=true: {words}") as caught:
        evaluate(tmp_path, config, episodes=1, video=True)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "videos").iterdir()) == []


class BlindEnv(gymnasium.Env[Array, Any]):
    """An environment without render modes."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **_: Any) -> tuple[Array, dict[str, Any]]:
        return np.zeros(2, np.float32), {}


class LiarEnv(BlindEnv):
    """An environment that declares a render mode, but renders no picture."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 - Gymnasium's

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.zeros((4, 4), np.float32)


class LackingEnv(LiarEnv):
    """An environment that needs another package to render."""

    def render(self) -> Any:
        raise gymnasium.error.DependencyNotInstalled("pip install paint")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ConfigError, match=r"^video=true: .*pip install 'htsrl\[video\]'"):
        evaluate(tmp_path, CARTPOLE, episodes=1, video=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "videos").write_text("in the way")
    with pytest.raises(ConfigError, match=r"^video=true: .*videos cannot be written"):
        evaluate(tmp_path, CARTPOLE, episodes=1, video=True)


def test_a_video_that_cannot_be_stored_costs_no_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = evaluate(tmp_path, CARTPOLE, episodes=2)
    (tmp_path / "videos" / "sampled_0000.mp4").mkdir(parents=True)
    with caplog.at_level(logging.ERROR):
        assert evaluate(tmp_path, CARTPOLE, episodes=2, video=True) == expected
    assert "sampled_0000.mp4: Is a directory; the video is not stored" in caplog.text
    assert json.loads((tmp_path / "eval.json").read_text())["scores"]["sampled"]["lengths"] == list(
        expected.scores["sampled"].lengths
    )
    names = {path.name for path in (tmp_path / "videos").iterdir()}
    assert names == {"sampled_0000.mp4", "sampled_0001.mp4"}


# imageio-ffmpeg leaves the pipe to a dead ffmpeg to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_failing_ffmpeg_is_reported_and_the_game_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\n[ $# -gt 5 ] && exit 1\necho ffmpeg version 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg._io, "get_ffmpeg_exe", lambda: str(program))
    result = evaluate(tmp_path, PONG, episodes=1, video=True)
    assert result.scores["sampled"].lengths[0] > 10
    assert "the video is not stored" in caplog.text
    assert list((tmp_path / "videos").iterdir()) == []


def test_unfinished_videos_are_removed(tmp_path: Path) -> None:
    (tmp_path / "game_0009.mp4.part").write_bytes(b"of a killed process")
    env = pictured(PONG)
    env.reset(seed=0)

    def interrupted() -> None:
        with VideoFolder(tmp_path) as videos:
            assert list(tmp_path.iterdir()) == []
            video = videos.video(env, 0)
            assert video is not None
            video.add_frame()
            assert [path.suffix for path in tmp_path.iterdir()] in ([], [".part"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(10, 12), (361, 363), (400, 600)])
def test_sizes_that_players_can_show(tmp_path: Path, shape: tuple[int, int]) -> None:
    class Still:
        frame_rate = 12.5
        score = -3.5

        def __getattr__(self, name: str) -> object:
            return name  # any other attribute of an environment

        def render(self) -> Array:
            return np.full((*shape, 3), (200, 60, 20), np.uint8)

    env: Any = Still()
    with VideoFolder(tmp_path) as videos:
        video = videos.video(env, 0)
        assert video is not None
        video.add_frame()
        video.finish()
    frames, meta = read_back(tmp_path / "game_0000.mp4")
    frames, captions = frames[:, :-CAPTION_HEIGHT], frames[:, -CAPTION_HEIGHT:]
    height, width = shape
    factor = 36 if height == 10 else 1
    assert frames.shape[1:3] == (height * factor + height % 2, width * factor + width % 2)
    assert meta["fps"] == 12.5
    assert captions.min() < 20 < 200 < captions.max(), "nothing is written there"
    # Compression carries the black of the strip one block into the frame.
    assert np.abs(frames[:, :-16].astype(int) - (200, 60, 20)).max() < 8


@pytest.mark.parametrize(
    ("config", "renderer", "remedy"),
    [
        (PONG, "engine", "must be one of screen with env.kind=atari"),
        (CARTPOLE, "human", "must be one of rgb_array with env.kind=gym"),
        (FOOTBALL, "enigne", "must be one of pitch, engine with env.kind=football"),
        (sections.synthetic("count"), "screen", "env.kind=synthetic cannot be rendered"),
    ],
)
def test_each_kind_of_environment_names_its_renderers(
    tmp_path: Path, config: EnvConfig, renderer: str, remedy: str
) -> None:
    """Checks that a mistake is found without the environment's package, with or without videos."""
    meta = {"config": to_plain(replace(small_config("atari", "ppo"), env=config)), "env_steps": 0}
    path = tmp_path / "a.ckpt"
    for video in (False, True):
        keys = sections.eval(str(path), greedy=False, renderer=renderer, video=video)
        with pytest.raises(ConfigError, match=f"^renderer={renderer}: {remedy}"):
            evaluation.play(Checkpoint({}, meta), keys, path)


@pytest.mark.slow
def test_football_rendered_by_the_engine(tmp_path: Path) -> None:
    """Checks that the rendering engine plays like the other one, one game after the other."""
    pytest.importorskip("gfootball_engine", reason=NO_FOOTBALL)
    config = sections.football("academy_counterattack_hard")
    without = evaluate(tmp_path, config, episodes=2, seed=1)
    keys: dict[str, Any] = {"video": True, "renderer": "engine"}
    assert evaluate(tmp_path, config, episodes=2, seed=1, **keys) == without
    for number, length in enumerate(without.scores["sampled"].lengths):
        frames, _ = read_back(tmp_path / "videos" / f"sampled_{number:04}.mp4")
        assert frames.shape == (length + 1, 720 + CAPTION_HEIGHT, 1280, 3)
        red, green, blue = frames[-1].mean(axis=(0, 1))
        assert green > max(red, blue), "no grass"
