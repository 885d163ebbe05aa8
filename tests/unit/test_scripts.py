"""Arithmetic of the benchmark scripts, by simulations; the check of docstrings; `make setup`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from scripts.asynchrony import claim_1_seconds, lockstep_seconds
from scripts.check_docstrings import fragments
from scripts.ranks_model import Work, work_of

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


def simulated_exchange(size: int, delay_s: float, bits_per_s: float, bits: float) -> float:
    """Returns when the last message of an exchange between ranks arrives, message by message."""

    def stage(bits_sent: float, now: float) -> float:
        for payload in (0.0, 0.0, 0.0, bits_sent):  # to agree takes two round trips with the data
            now += payload / bits_per_s + delay_s
        return now

    if size == 2:
        return stage(bits, 0.0)
    now = stage(sum(bits / size for _ in range(size - 1)), 0.0)
    for _ in range(size - 1):  # each rank passes on what its neighbour has just sent
        now = stage(bits / size, now)
    return now


@pytest.mark.parametrize("size", [2, 3, 8])
def test_model_of_an_exchange(size: int) -> None:
    link = (0.01, 1e9)
    work = Work(2048, collecting_s=0.1, learning_s=1.0, optimizer_steps=16, megabytes=6.75)
    simulated = simulated_exchange(size, *link, bits=54e6)
    assert work.exchange_s(size, *link) == pytest.approx(simulated)
    assert work.rollout_s(size, *link) == pytest.approx(1.0 + 16 * simulated)


def test_collecting_hides_short_exchanges() -> None:
    work = Work(2048, collecting_s=3.0, learning_s=1.0, optimizer_steps=1, megabytes=1.0)
    assert work.rollout_s(2, 0.01, 1e9) == work.rollout_s(1, 0.01, 1e9) == 3.0


def test_work_is_what_a_benchmark_has_spent() -> None:
    """Of 4 s for 2,000 env steps, collecting takes 3 s, learning 1 s, and exchanges 2 s."""
    times = {"collecting": 0.75, "learner_busy": 0.75, "exchange": 0.5}
    runs = [{"name": "hts", "rate": 500.0, "times": times}]
    runs += [{"name": "hts, one process", "rate": 900.0, "times": {}}]
    bench = {"runs": runs, "exchange": {"megabytes": 6.75}}
    assert work_of(bench, env_steps=2000, optimizer_steps=16) == Work(2000, 3.0, 1.0, 16, 6.75)


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
