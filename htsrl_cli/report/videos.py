"""The video that the report shows of a group."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from htsrl_cli.evaluation.result import VIDEO_FOLDER
from htsrl_cli.report.groups import Group
from htsrl_cli.report.runs import StoredRun
from htsrl_cli.tracking.film import film_path

# A larger file is not embedded in the page.
LARGEST_EMBEDDED_MB = 2


@dataclass(frozen=True)
class Video:
    """A video of a run.

    Attributes:
        path: the file.
        run: the run whose policy plays.
        caption: which policy plays which game.
    """

    path: Path
    run: StoredRun
    caption: str

    def source(self) -> str | None:
        """Returns the file as a data URI; None if it is larger than LARGEST_EMBEDDED_MB."""
        if self.path.stat().st_size > LARGEST_EMBEDDED_MB * 1_000_000:
            return None
        return f"data:video/mp4;base64,{base64.b64encode(self.path.read_bytes()).decode()}"

    def link(self, folder: Path) -> str:
        """Returns the URL of the file relative to `folder`."""
        return quote(os.path.relpath(self.path, folder.resolve()))


def find_video(group: Group) -> Video | None:
    """Returns the video to show of a group; None if its runs have no videos.

    The group's best run that has a video is shown: the policy that was filmed last during training,
    or else the first game of the last `htsrl eval` with videos.
    """
    order = sorted(zip(group.runs, group.curves, strict=True), key=lambda p: -p[1].scores[-1])
    for run, _ in order:
        video = _last_filmed(run, run.evaluated) or _first_game(run)
        if video:
            return video
    return None


def _last_filmed(run: StoredRun, evaluated: Mapping[int, float]) -> Video | None:
    for env_steps, score in sorted(evaluated.items(), reverse=True):
        path = film_path(run.folder, env_steps)
        if path.is_file():
            caption = f"policy after {env_steps:,} env steps, mean score of its games {score:.2f}"
            return Video(path, run, caption)
    return None


def _first_game(run: StoredRun) -> Video | None:
    # The games in `eval.json` may be of a later evaluation than the videos, so their scores are not
    # shown here. The frames show the score.
    games = sorted((run.folder / VIDEO_FOLDER).glob("*_[0-9]*.mp4"))
    return Video(games[0], run, f"{games[0].stem} of htsrl eval") if games else None
