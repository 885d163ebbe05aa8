"""Videos of games: H.264 in MP4, encoded frame by frame by the ffmpeg of imageio-ffmpeg.

A file appears only when it is complete, at the end of its game. A caption below each frame shows
the score and the number of the env step.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from htsrl_cli.durable import TEMPORARY_SUFFIX, remove_leftovers
from htsrl_cli.envs.base import Array, Env, PicturedEnv
from htsrl_cli.errors import ConfigError

logger = logging.getLogger(__name__)

# Frames whose shorter side has fewer pixels than this are enlarged by an integer factor.
SMALLEST_SIDE = 360
# Height of the strip below the frame, in pixels.
CAPTION_HEIGHT = 32
# x264's constant rate factor: 0 is lossless, 23 the default.
_QUALITY = 20
_OUTPUT = ["-crf", str(_QUALITY), "-movflags", "+faststart", "-f", "mp4"]


class VideoFolder:
    """A folder for the videos of games.

    The constructor creates the folder and deletes numbered videos of earlier evaluations. The end
    of the `with` block deletes the videos of games that have not ended.

    Args:
        folder: the folder.
        name: file name of a video. `{:04}` in it stands for the game's number.
        most: number of games to film, starting with game 0; None to film all games.

    Raises:
        ConfigError: a package is missing, or the folder cannot be written to.
    """

    def __init__(self, folder: Path, name: str = "game_{:04}.mp4", most: int | None = None) -> None:
        check_packages("video", "true")
        self._folder = folder
        self._name = name
        self._most = most
        self._videos: list[Video] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            _remove_numbered(folder, name)
        except OSError as error:
            remedy = f"{folder} cannot be written to ({error.strerror}): make it a writable folder"
            raise ConfigError("video", "true", remedy) from error

    def __enter__(self) -> VideoFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        for video in self._videos:
            video.discard()

    def video(self, env: Env, number: int) -> Video | None:
        """Starts the video of game `number` in `env`; returns None if the game is not filmed.

        Raises:
            ConfigError: the environment cannot be rendered.
        """
        if self._most is not None and number >= self._most:
            return None
        picture = check_picture(env, "video", "true")
        video = Video(picture, self._folder / self._name.format(number))
        self._videos.append(video)
        return video


class Video:
    """The video of one game, with a frame after the first reset and after every env step.

    If the file cannot be written, an error is logged and the game continues without a video.
    """

    def __init__(self, env: PicturedEnv, path: Path) -> None:
        self._env = env
        self._path = path
        self._part = path.with_name(path.name + TEMPORARY_SUFFIX)
        self._num_frames = 0
        # The encoder; None before the first frame and after the end of the video.
        self._ffmpeg: Generator[None, Array, None] | None = None
        self._is_over = False

    def add_frame(self) -> None:
        """Appends a frame of the environment's current state."""
        if self._is_over:
            return
        frame = _enlarge(self._env.render())
        frame = _add_caption(frame, f"score {self._env.score:g}   step {self._num_frames}")
        try:
            if self._ffmpeg is None:
                self._ffmpeg = _start_ffmpeg(self._part, frame, self._env.frame_rate)
            self._ffmpeg.send(frame)
            self._num_frames += 1
        except OSError as error:
            self._give_up(error)

    def finish(self) -> None:
        """Completes the file at the end of the game and gives it its final name."""
        if self._is_over:
            return
        try:
            self._stop_ffmpeg()
            _check_whole(self._part, self._num_frames)
            os.replace(self._part, self._path)
            logger.info("wrote %s", self._path)
        except OSError as error:
            self._give_up(error)

    def discard(self) -> None:
        """Deletes the video if it is unfinished; keeps a finished video."""
        if not self._is_over:
            self._stop_ffmpeg()
            self._part.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        reason = str(error.strerror or error).partition("\n")[0]
        logger.error("%s: %s; the video is not stored", self._path, reason)
        self._stop_ffmpeg()
        self._part.unlink(missing_ok=True)

    def _stop_ffmpeg(self) -> None:
        self._is_over = True
        if self._ffmpeg is not None:
            self._ffmpeg.close()
            self._ffmpeg = None


def check_packages(key: str, value: object) -> None:
    """Checks that the packages for videos are installed.

    Args:
        key: the configuration key that asks for a video, for the error message.
        value: the key's value.

    Raises:
        ConfigError: a package is missing.
    """
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ModuleNotFoundError, RuntimeError) as error:
        remedy = "needs imageio-ffmpeg: pip install 'htsrl[video]'"
        raise ConfigError(key, value, remedy) from error


def check_picture(env: Env, key: str, value: object) -> PicturedEnv:
    """Returns `env` after checking that it can be rendered.

    Args:
        key: the configuration key that asks for a video, for the error message.
        value: the key's value.

    Raises:
        ConfigError: the environment cannot be rendered.
    """
    if not isinstance(env, PicturedEnv):
        raise ConfigError(key, value, "this environment cannot be rendered: remove the key")
    return env


def _remove_numbered(folder: Path, name: str) -> None:
    """Deletes the files in `folder` whose names are `name` with a number in place of `{:04}`.

    Does nothing if `name` has no `{:04}`.
    """
    before, number, after = name.partition("{:04}")
    if not number:
        return
    numbered = re.compile(rf"{re.escape(before)}\d{{4,}}{re.escape(after)}")
    for path in folder.iterdir():
        if numbered.fullmatch(path.name) and path.is_file():
            path.unlink()


def _start_ffmpeg(path: Path, frame: Array, frame_rate: float) -> Generator[None, Array, None]:
    import imageio_ffmpeg

    height, width = frame.shape[:2]
    ffmpeg: Any = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=frame_rate,
        codec="libx264",
        quality=None,
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=list(_OUTPUT),
    )
    ffmpeg.send(None)
    started: Generator[None, Array, None] = ffmpeg
    return started


def _check_whole(path: Path, num_frames: int) -> None:
    """Checks that a video file has all `num_frames` frames.

    ffmpeg writes many of the frames only when it ends. If these writes fail, for example because
    the disk is full, imageio-ffmpeg reports nothing.

    Raises:
        OSError: frames are missing.
    """
    file = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    written = round(file.get(cv2.CAP_PROP_FRAME_COUNT))
    file.release()
    if written != num_frames:
        raise OSError(f"ffmpeg wrote {written} of {num_frames} frames")


def _enlarge(frame: Array) -> Array:
    """Enlarges a small frame by an integer factor; pads an odd height or width by one pixel.

    Both must be even, because the video's colors have half the resolution (4:2:0).

    Args:
        frame: uint8 [H, W, 3].
    """
    factor = -(-SMALLEST_SIDE // min(frame.shape[:2]))
    if factor > 1:
        frame = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    return np.ascontiguousarray(frame)


def _add_caption(frame: Array, text: str) -> Array:
    """Returns the frame with `text` on a black strip below it, uint8 [H + 32, W, 3]."""
    captioned = cv2.copyMakeBorder(frame, 0, CAPTION_HEIGHT, 0, 0, cv2.BORDER_CONSTANT, value=0)
    place = (10, len(captioned) - 10)
    white = (255, 255, 255)
    font = cv2.FONT_HERSHEY_SIMPLEX
    return cv2.putText(captioned, text, place, font, 0.6, white, 1, cv2.LINE_AA)
