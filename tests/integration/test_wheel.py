"""The wheel, installed into an empty virtual environment and used from another folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Packages that constraints.txt does not pin: htsrl, a build tool, and CUDA's parts of PyTorch.
NOT_PINNED = re.compile(r"htsrl|setuptools|triton|(nvidia|cuda)-.*")


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, ROOT, cwd=folder)
    (path,) = folder.glob("htsrl-*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel: Path) -> Path:
    """Returns the folder of commands of a new virtual environment with the wheel."""
    folder = wheel.with_name("venv")
    call(sys.executable, "-m", "venv", folder, cwd=wheel.parent)
    install(folder / "bin", str(wheel))
    return folder / "bin"


def install(scripts: Path, requirement: str) -> None:
    """Installs a requirement, with the versions in constraints.txt."""
    words = [scripts / "pip", "install", "-q", "-c", CONSTRAINTS, requirement]
    call(*words, cwd=scripts.parent)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_installed_wheel_trains_evaluates_and_reports(
    scripts: Path, wheel: Path, tmp_path: Path
) -> None:
    install(scripts, f"{wheel}[report]")
    call(
        *(scripts / "htsrl", "train", "env=atari/pong", "total_steps=4096"),
        *("algo.update_epochs=1", "env.max_num_frames_per_episode=600", "hydra.run.dir=run"),
        cwd=tmp_path,
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["env_steps"] == 4096
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    printed = call(scripts / "htsrl", "eval", "checkpoint=run", "episodes=2", cwd=tmp_path)
    evaluation = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert all(f"{found['mean']:.2f}" in printed for found in evaluation["scores"].values())
    call(scripts / "htsrl", "report", "run", cwd=tmp_path)
    assert summary["params_sha256"] in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_extra_video_films_cartpole(scripts: Path, wheel: Path, tmp_path: Path) -> None:
    install(scripts, f"{wheel}[video]")
    call(
        *(scripts / "htsrl", "train", "env=gym", "env.id=CartPole-v1", "total_steps=4000"),
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    call(
        scripts / "htsrl",
        "eval",
        "checkpoint=run",
        "episodes=1",
        "greedy=true",
        "video=true",
        cwd=tmp_path,
    )
    (video,) = (tmp_path / "run" / "videos").iterdir()
    assert video.name == "greedy_0000.mp4"
    assert video.stat().st_size > 1000


@pytest.mark.slow("needs a package index")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_can_be_installed_with_the_tested_versions(
    extra: str, wheel: Path, tmp_path: Path
) -> None:
    call(
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-q"),
        *("-c", CONSTRAINTS, "--report", "report.json", f"{wheel}[{extra}]"),
        cwd=tmp_path,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    packages = {canonicalize_name(package["metadata"]["name"]) for package in report["install"]}
    lines = CONSTRAINTS.read_text().splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if not line.startswith("#")}
    assert {canonicalize_name(Requirement(need).name) for need in EXTRAS[extra]} <= packages
    assert not [name for name in packages - pinned if not NOT_PINNED.fullmatch(name)]
