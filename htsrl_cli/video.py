"""Videos of games: H.264 in MP4, written picture by picture by ffmpeg, which imageio-ffmpeg brings.

A file appears whole, at the end of its game.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from htsrl_cli.durable import TEMPORARY_SUFFIX, remove_leftovers
from htsrl_cli.envs import Array, Env, PicturedEnv
from htsrl_cli.errors import ConfigError

logger = logging.getLogger(__name__)

# Pictures whose shorter side has fewer pixels are enlarged by an integer.
SMALLEST_SIDE = 360
# Constant rate factor of x264: 0 is lossless, 23 its default.
_QUALITY = 20
_OUTPUT = ["-crf", str(_QUALITY), "-movflags", "+faststart", "-f", "mp4"]


class VideoFolder:
    """A folder for the videos of games, `game_0000.mp4` and so on; those of before are replaced.

    Leaving its context removes what was written of games that have not ended.

    Raises:
        ConfigError: a package is missing, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        _check_packages()
        self._folder = folder
        self._videos: list[Video] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        except OSError as error:
            remedy = f"{folder} cannot be written ({error.strerror})"
            raise ConfigError("video", "true", remedy) from error

    def __enter__(self) -> VideoFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for video in self._videos:
            video.discard()

    def video(self, env: Env, number: int) -> Video:
        """Begins the video of game `number`, which `env` plays.

        Raises:
            ConfigError: the environment cannot be pictured.
        """
        if not isinstance(env, PicturedEnv):
            raise ConfigError("video", "true", "this environment has no picture: leave the key out")
        video = Video(env, self._folder / f"game_{number:04}.mp4")
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


def _check_packages() -> None:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ModuleNotFoundError, RuntimeError) as error:
        remedy = "needs imageio-ffmpeg: pip install 'htsrl[video]'"
        raise ConfigError("video", "true", remedy) from error


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
