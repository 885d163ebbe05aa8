"""Small checkpoints, and the files of a run's folder, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from htsrl_cli.checkpoints.file import Checkpoint


def tiny(value: int = 0) -> Checkpoint:
    return Checkpoint({"value": np.array(value)}, {})


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def steps(run_dir: Path) -> list[int]:
    return [int(name.removeprefix("step_").removesuffix(".ckpt")) for name in names(run_dir)]
