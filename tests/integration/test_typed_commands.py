"""The commands of the README, the first run and two guides, run as typed, but for their length."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.pages import DOCS, ROOT, commands, words_of

README = ROOT / "README.md"
FIRST_RUN = DOCS / "get-started" / "first-run.md"
GUIDES = [DOCS / "guides" / f"your-{name}.md" for name in ("environment", "network")]
# The module that the README's recipes name, made of the guides' examples.
MY_MODULE = """
import catch, gymnasium
from networks import ResidualMlp as MyNet

gymnasium.register("MyEnv-v0", catch.Catch)
"""
# The length of a shortened training run: it needs two rollouts, and one of PPO has 2,048 env steps.
SHORT_RUN = "total_steps=6_000"
# Appended to other commands that would take hours.
SHORTER = {
    "bench": ["bench.seconds=2", "bench.micro_seconds=0.1", "bench.repeats=1"],
    # An untrained policy ends no episode of Acrobot before its 500th env step.
    "hparams_search=ppo": ["hydra.sweeper.n_trials=2", "total_steps=12_000"],
}


def typed(page: Path) -> list[str]:
    """Returns the commands of `htsrl` on a page, in order."""
    return [shlex.join(words_of(command)[1:]) for command, _ in commands(page, "htsrl")]


def examples(page: Path) -> dict[str, str]:
    """Returns the files that a page tells to save, by name."""
    saved = re.findall(r"Save this as `(\S+)`.*?```python\n(.*?)```", page.read_text(), re.DOTALL)
    return dict(saved)


def as_run(command: str, run_dir: str) -> list[str]:
    """Returns the words of a command, with words that shorten it, and the name of a real run."""
    words = [word.replace("RUN_DIR", run_dir) for word in shlex.split(command)]
    for name, more in SHORTER.items():
        words += more if name in words else []
    is_long = words[0] == "train" and not {"--help", f"resume={run_dir}"} & set(words)
    if is_long and not any(word.startswith("total_steps=") for word in words):
        words.append(SHORT_RUN)
    return words


def run(folder: Path, *words: str) -> str:
    """Runs `htsrl WORDS ...` in a folder; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    done = subprocess.run(
        [sys.executable, "-m", "htsrl_cli", *words],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, f"htsrl {' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder in which the quickstart has been typed."""
    folder = tmp_path_factory.mktemp("quickstart")
    for page in GUIDES:
        for name, text in examples(page).items():
            (folder / name).write_text(text, encoding="utf-8")
    (folder / "my_module.py").write_text(MY_MODULE, encoding="utf-8")
    for command in typed(FIRST_RUN):
        run(folder, *shlex.split(command))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quickstart_does_what_it_says(quickstart: Path) -> None:
    commands_of_readme = typed(README)
    assert typed(FIRST_RUN)[:2] == commands_of_readme[:2]
    first, again = (
        json.loads((quickstart / "runs" / name / "summary.json").read_text())
        for name in ("cartpole", "again")
    )
    # The first run was resumed with more env steps; its evaluation was of the first 60,160.
    assert first["env_steps"] > 150_000
    assert again["env_steps"] == 60_160
    evaluation = json.loads((quickstart / "runs" / "cartpole" / "eval.json").read_text())
    assert [evaluation["scores"][kind]["mean"] for kind in ("greedy", "sampled")] == [500.0, 500.0]
    assert "500.00" in README.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", typed(README)[2:])
def test_recipes_run(command: str, quickstart: Path) -> None:
    if "football" in command and find_spec("gfootball") is None:
        pytest.skip("football's engine is not installed (make football)")
    run(quickstart, *as_run(command, "runs/cartpole"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_examples_of_the_guides_run(page: Path, quickstart: Path) -> None:
    assert examples(page)
    own = [command for command in typed(page) if any(n[:-3] in command for n in examples(page))]
    evaluations = [command for command in typed(page) if command.startswith("eval ")]
    assert len(own) >= 2
    assert evaluations
    for command in dict.fromkeys([*own, *evaluations]):
        run(quickstart, *as_run(command, "runs/cartpole"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tensorboard_shows_the_run(quickstart: Path) -> None:
    [(command, _)] = commands(FIRST_RUN, "tensorboard")
    program, *words = words_of(command)
    # `--inspect` reads the event files as the page would, and ends.
    done = subprocess.run(
        [str(Path(sys.executable).with_name(program)), "--inspect", *words],
        cwd=quickstart,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "episode/return_mean" in done.stdout
