"""Videos of games: H.264 in MP4, written picture by picture by ffmpeg, which imageio-ffmpeg brings.

A file appears whole, at the end of its game. Score and env step stand below the picture.
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

# Pictures whose shorter side has fewer pixels are enlarged by an integer.
SMALLEST_SIDE = 360
# Of the strip below the picture, in pixels.
CAPTION_HEIGHT = 32
# Constant rate factor of x264: 0 is lossless, 23 its default.
_QUALITY = 20
_OUTPUT = ["-crf", str(_QUALITY), "-movflags", "+faststart", "-f", "mp4"]


class VideoFolder:
    """A folder for the videos of games; numbered ones of before are removed.

    Leaving its context removes what was written of games that have not ended.

    Args:
        name: of a file, with `{:04}` for the game's number where several are filmed.
        most: games that are filmed, from number 0 on; all if None.

    Raises:
        ConfigError: a package is missing, or the folder cannot be written.
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
            remedy = f"{folder} cannot be written ({error.strerror})"
            raise ConfigError("video", "true", remedy) from error

    def __enter__(self) -> VideoFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        for video in self._videos:
            video.discard()

    def video(self, env: Env, number: int) -> Video | None:
        """Begins the video of game `number`, which `env` plays; None if it is not filmed.

        Raises:
            ConfigError: the environment cannot be pictured.
        """
        if self._most is not None and number >= self._most:
            return None
        picture = check_picture(env, "video", "true")
        video = Video(picture, self._folder / self._name.format(number))
        self._videos.append(video)
        return video


class Video:
    """The video of one game: a picture after its reset and after every env step.

    A file that cannot be written is reported, and the game goes on without.
    """

    def __init__(self, env: PicturedEnv, path: Path) -> None:
        self._env = env
        self._path = path
        self._part = path.with_name(path.name + TEMPORARY_SUFFIX)
        self._num_frames = 0
        # Takes pictures once it has begun; None before the first one and after the last.
        self._ffmpeg: Generator[None, Array, None] | None = None
        self._is_over = False

    def add_frame(self) -> None:
        """Appends a picture of the environment's present state."""
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
        """Gives the file its name; the game has ended."""
        if self._is_over:
            return
        try:
            self._stop_ffmpeg()
            _check_whole(self._part, self._num_frames)
            os.replace(self._part, self._path)
            logger.info("%s is written", self._path)
        except OSError as error:
            self._give_up(error)

    def discard(self) -> None:
        """Removes what has been written, unless the video is finished."""
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
    """Checks that videos, which the configuration's `key` asks for, can be written here.

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
    """`env`, of which the configuration's `key` asks for a video, as one that can be pictured.

    Raises:
        ConfigError: it cannot.
    """
    if not isinstance(env, PicturedEnv):
        raise ConfigError(key, value, "this environment has no picture: leave the key out")
    return env


def _remove_numbered(folder: Path, name: str) -> None:
    """Removes the files that `name` has named with any number; none where it takes none."""
    before, _, after = name.partition("{:04}")
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
    """Many pictures are written when ffmpeg ends, and nobody hears that the disk is full."""
    file = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    written = round(file.get(cv2.CAP_PROP_FRAME_COUNT))
    file.release()
    if written != num_frames:
        raise OSError(f"ffmpeg wrote {written} of {num_frames} pictures")


def _enlarge(frame: Array) -> Array:
    """A small picture by an integer factor; sides become even, as 4:2:0 colours need them."""
    factor = -(-SMALLEST_SIDE // min(frame.shape[:2]))
    if factor > 1:
        frame = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    return np.ascontiguousarray(frame)


def _add_caption(frame: Array, text: str) -> Array:
    """The picture with a dark strip below it, which holds `text`; uint8 [H + 32, W, 3]."""
    captioned = cv2.copyMakeBorder(frame, 0, CAPTION_HEIGHT, 0, 0, cv2.BORDER_CONSTANT, value=0)
    place = (10, len(captioned) - 10)
    white = (255, 255, 255)
    font = cv2.FONT_HERSHEY_SIMPLEX
    return cv2.putText(captioned, text, place, font, 0.6, white, 1, cv2.LINE_AA)
