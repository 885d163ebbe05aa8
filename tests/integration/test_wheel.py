"""The wheel, installed into an empty virtual environment and used from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def call(*words: object, cwd: Path) -> str:
    """Runs a command without this checkout in PYTHONPATH; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_installed_wheel_trains_evaluates_and_reports(tmp_path: Path) -> None:
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("htsrl-*.whl")
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    scripts = tmp_path / "venv" / "bin"
    constraints = ROOT / "constraints.txt"
    call(scripts / "pip", "install", "-q", "-c", constraints, f"{wheel}[report]", cwd=tmp_path)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    call(
        *(scripts / "htsrl", "train", "env=atari/pong", "total_steps=4096"),
        *("algo.update_epochs=1", "env.max_num_frames_per_episode=600", "hydra.run.dir=run"),
        cwd=folder,
    )
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["env_steps"] == 4096
    assert list((folder / "run").glob("events.out.tfevents.*"))
    printed = call(scripts / "htsrl", "eval", "checkpoint=run", "episodes=2", cwd=folder)
    evaluation = json.loads((folder / "run" / "eval.json").read_text())
    assert f"{evaluation['mean']:.2f}" in printed
    call(scripts / "htsrl", "report", "run", cwd=folder)
    assert summary["params_sha256"] in (folder / "report" / "report.html").read_text()
