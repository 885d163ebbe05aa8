"""The benchmark scripts' arithmetic against simulations; the check of docstrings; `make setup`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from scripts.asynchrony import claim_1_seconds, lockstep_seconds
from scripts.check_docstrings import fragments

ROOT = Path(__file__).parents[2]
INTERVALS = 4000
# Lines that end with "# wrong" have a docstring that is a fragment.
DOCSTRINGS = '''"""Whether it works."""  # wrong

class Ring:
    """Two slots."""

    @property
    def size(self):
        """How many slots."""  # wrong

    @functools.cached_property
    def slots(self):
        """Slots of the ring."""

    def swap(self):
        """The other slot."""  # wrong

def rate():
    """Returns env steps
    per second."""

def duration():
    """Seconds of a run."""  # wrong

def wait():
    """Blocks until the barrier."""

@pytest.fixture(scope="module")
def ring():
    """A ring of two slots."""

def test_swap():
    """The other slot is free."""
'''


@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
@pytest.mark.parametrize(("num_envs", "tolerance"), [(16, 0.03), (32, 0.02)])
def test_claim_1_is_the_time_of_the_slowest_environment(
    num_envs: int, tolerance: float, shape: float
) -> None:
    alpha, mean_s, actor_s = 128, 0.01, 0.001
    rng = np.random.default_rng(0)
    parts = rng.gamma(alpha * shape, mean_s / shape, (INTERVALS, num_envs)) + alpha * actor_s
    simulated = parts.max(axis=1).mean()
    predicted = claim_1_seconds(alpha * num_envs, num_envs, alpha, mean_s, actor_s, shape)
    assert predicted == pytest.approx(simulated, rel=tolerance)


def test_claim_1_grows_with_the_states_alone() -> None:
    one = claim_1_seconds(2048, 16, 128, 0.01, 0.001)
    assert claim_1_seconds(20480, 16, 128, 0.01, 0.001) == pytest.approx(10 * one)


def test_claim_1_adds_the_actor_time_of_each_environments_steps() -> None:
    without = claim_1_seconds(1600, 16, 128, 0.01, 0.0)
    assert claim_1_seconds(1600, 16, 128, 0.01, 0.002) == pytest.approx(without + 100 * 0.002)


def test_lockstep_waits_for_the_slowest_at_every_step() -> None:
    rng = np.random.default_rng(0)
    simulated = rng.exponential(0.01, (100_000, 16)).max(axis=1).mean()
    assert lockstep_seconds(16, 16, 0.01, 0.0) == pytest.approx(simulated, rel=0.01)
    # Two environments: 1 + 1/2 times the mean, and one overhead for both.
    assert lockstep_seconds(2, 2, 1.0, 0.25) == pytest.approx(1.75)


def test_docstrings_that_are_fragments_are_found() -> None:
    lines = DOCSTRINGS.splitlines()
    # A docstring of several lines is reported at its first.
    wrong = [i for i, line in enumerate(lines, 1) if line.endswith(("# wrong", "env steps"))]
    assert [line for line, _ in fragments(DOCSTRINGS)] == wrong


@pytest.mark.parametrize("has_torch", [False, True])
def test_setup_says_how_to_get_torch_without_cuda(has_torch: bool, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    # A stand-in for pip: only `pip show` fails, if torch is not installed.
    python.write_text(f'#!/bin/sh\n[ "$3" != show ] || exit {int(not has_torch)}\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "setup", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (pin,) = re.findall("^torch==.*", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    hint = f"{python} -m pip install {pin} --index-url https://download.pytorch.org/whl/cpu"
    assert (hint in done.stdout) is not has_torch
    assert (tmp_path / ".installed").exists()
