"""The Python interface: programs that train and play, as they are typed."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from htsrl_cli.api import _words, train
from htsrl_cli.errors import ConfigError, EnvError, HtsrlError, RunError, UsageError
from tests.conftest import ROOT, Htsrl
from tests.fault.processes import ENDLESS, WORDS, Run, wait_until

README = ROOT / "README.md"
# A run of a few rollouts.
TINY: dict[str, Any] = {
    "env": "gym",
    "env.id": "CartPole-v1",
    "algo": {"learning_rate": 1e-3, "num_minibatches": 1, "update_epochs": 1},
    "actors": {"num_envs": 4, "num_executors": 2, "num_actors": 1, "inference_batch": 4},
    "learner": {"num_threads": 1, "micro_batch": 32},
    "network.hidden_sizes": [8],
    "runner": "serial",
    "runner.sync_interval": 8,
    "log.tensorboard": False,
    "total_steps": 128,
}
HASHES = ("params_sha256", "optimizer_sha256", "rollouts_sha256")


def settings() -> list[object]:
    """Returns settings of this process that a run would change."""
    root = logging.getLogger()
    return [
        *(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)),
        [*root.handlers],
        [*logging.getLogger("htsrl_cli").handlers],
        root.level,
        logging.raiseExceptions,
        [*sys.argv],
        [*sys.path],
        dict(os.environ),
        GlobalHydra.instance().is_initialized(),
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
    ]


def test_a_run_is_that_of_the_command(
    htsrl: Htsrl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = settings()
    first = train({**TINY, "hydra.run.dir": "python"})
    printed = capsys.readouterr()
    # As words, in another thread, in a folder named by the time, and resumed.
    words = list(_words(TINY))
    results = []
    thread = threading.Thread(target=lambda: results.append(train(words)))
    thread.start()
    thread.join()
    [second] = results
    third = train({"resume": second.folder, "total_steps": 160})
    assert settings() == before
    done = htsrl("train", *words, "hydra.run.dir=typed")
    assert done.returncode == 0, done.stderr
    typed = json.loads((tmp_path / "typed" / "summary.json").read_text())
    for result in (first, second):
        assert [getattr(result, name) for name in HASHES] == [typed[name] for name in HASHES]
        assert (result.complete, result.env_steps, result.score) == (True, 128, typed["metric"])
    assert first.folder == tmp_path / "python"
    assert second.folder.is_relative_to(tmp_path / "runs" / "CartPole-v1" / "ppo")
    assert (third.folder, third.env_steps, third.complete) == (second.folder, 160, True)
    assert third.summary == json.loads((third.folder / "summary.json").read_text())
    # A program sees the lines of a run where it looks for standard error.
    assert (printed.out, "complete after 128 env steps" in printed.err) == ("", True)
    files = [
        {str(path.relative_to(folder)) for path in folder.rglob("*")}
        for folder in (first.folder, tmp_path / "typed")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["env=nowhere"], UsageError, "env=nowhere: "),
        ({"algo": {"lr": 1}}, ConfigError, "algo.lr=1: .*algo.learning_rate"),
        ({"algo.gamma": "high"}, ConfigError, "algo.gamma=high: must be a number"),
        ({"seed": {1, 2}}, ConfigError, r"seed=\{1, 2\}: must be a string, a number, a boolean"),
        ({"resume": "nothing"}, UsageError, "/.*/nothing does not exist"),
        ("seed=1", UsageError, r"train\('seed=1'\): give a list of words"),
        ([1], UsageError, r"train\(\[1\]\): give a list of words"),
        (["-m", "seed=1,2"], UsageError, "-m: train takes no flags"),
        (["seed=1,2"], UsageError, "seed=1,2: several values need a sweep"),
        (["hydra.mode=MULTIRUN"], UsageError, "train makes one run"),
    ],
)
def test_mistakes_are_exceptions(
    overrides: Any,
    error: type[HtsrlError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=f"^{message}") as caught:
        train(overrides)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert "".join(capfd.readouterr()) == ""


def test_a_run_that_fails_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Broken(CartPoleEnv):\n"
        "    def step(self, action):\n"
        "        raise LookupError('lost')\n"
        "gymnasium.register('Broken-v0', Broken)\n"
    )
    with pytest.raises(EnvError, match="LookupError: lost"):
        train({**TINY, "env.id": "broken:Broken-v0"})


# Values of a mapping, and the word that each becomes.
VALUES = [
    ({"seed": np.int64(3)}, "seed=3"),
    ({"algo": {"learning_rate": np.float32(0.5)}}, "algo.learning_rate=0.5"),
    ({"log.tensorboard": False}, "log.tensorboard=false"),
    ({"actors.num_envs": None}, "actors.num_envs=null"),
    ({"network": {"hidden_sizes": (8, 9)}}, "network.hidden_sizes=[8,9]"),
    ({"env": {"kwargs": {"gravity": 1e-7}}}, "++env.kwargs.gravity=1e-07"),
    ({"+env.kwargs.name": "a 'b'"}, r"+env.kwargs.name='a \'b\''"),
    ({"hydra.run.dir": Path("a=b, c")}, "hydra.run.dir='a=b, c'"),
]


@pytest.mark.parametrize(("values", "word"), VALUES)
def test_values_become_words(values: dict[str, Any], word: str) -> None:
    assert list(_words(values)) == [word]


def run_program(cwd: Path, file: str, text: str = "") -> str:
    """Runs a program from a file, or with `-` from standard input; returns what it prints."""
    done = subprocess.run(
        [sys.executable, file],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=text,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def programs(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("file", ["program.py", "-"])
def test_the_readmes_program_prints_the_score_of_an_evaluation(
    file: str, htsrl: Htsrl, tmp_path: Path
) -> None:
    [program] = programs(README)
    lines = [line for line in program.splitlines() if line]
    assert len(lines) <= 10
    short = program.replace("60_000", "2_000")
    assert short != program
    (tmp_path / "program.py").write_text(short)
    score = float(run_program(tmp_path, file, short if file == "-" else ""))
    [folder] = (tmp_path / "runs" / "CartPole-v1" / "ppo").iterdir()
    played = htsrl("eval", f"checkpoint={folder}", "episodes=2")
    assert played.returncode == 0, played.stderr
    scores = json.loads((folder / "eval.json").read_text())["scores"]["greedy"]["returns"]
    assert score == scores[0]
    assert score != scores[1]


def test_modules_beside_a_program_are_found(tmp_path: Path) -> None:
    """Checks that workers find a module in the program's folder, not only in the current one."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Mine-v0', CartPoleEnv, max_episode_steps=9)\n"
    )
    (tmp_path / "elsewhere" / "program.py").write_text(
        "from htsrl_cli.api import train\n"
        f"train({TINY | {'runner': 'hts', 'env.id': 'mine:Mine-v0'}!r})\n"
    )
    run_program(tmp_path, "elsewhere/program.py")


# A shell starts background jobs, and so their children, with SIGINT ignored.
CALLS = """
import signal, sys
from htsrl_cli.api import train
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    train(sys.argv[1:])
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(7)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_run_stops_with_a_checkpoint_when_its_program_does(
    number: signal.Signals, tmp_path: Path
) -> None:
    words = [*WORDS, ENDLESS]
    run = Run(tmp_path, command_line=[sys.executable, "-c", CALLS, *words])
    wait_until(lambda: run.env_steps > 0, "a line of metrics")
    run.process.send_signal(number)
    code = run.process.wait()
    assert code == (7 if number == signal.SIGINT else -number), run.stderr
    wait_until(lambda: not run.processes(), "the end of the run and its workers")
    assert ("interrupted" in run.stderr) == (number == signal.SIGINT)
    assert "Traceback" not in run.stderr
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["env_steps"] == run.checkpoint().meta["env_steps"] == run.env_steps > 0


def test_a_run_whose_process_is_killed_raises(tmp_path: Path) -> None:
    program = "import sys\nfrom htsrl_cli.api import train\ntrain(sys.argv[1:])"
    run = Run(tmp_path, command_line=[sys.executable, "-c", program, *WORDS, ENDLESS])
    wait_until(lambda: run.env_steps > 0, "a line of metrics")
    trainer = next(p for p in run.processes() if "run_trainer" in " ".join(p.cmdline()))
    trainer.kill()
    assert run.process.wait() == 1
    assert f"{RunError.__name__}: the process of the run ended with exit status -9" in run.stderr
    wait_until(lambda: not run.processes(), "the end of the workers")
