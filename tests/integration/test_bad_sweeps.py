"""Mistakes of users in sweeps and searches: exit code 2, one line that helps, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Htsrl
from tests.integration.refusals import assert_refused

# Arguments of `htsrl train`, and what the error must contain: key and value, remedy.
CASES = {
    "runner by its key in a sweep": (
        ["-m", "runner.name=hts,async"],
        "runner.name=async",
        "write it as runner=async",
    ),
    "search without a range": (["-m", "sweeper=optuna"], "a search", "needs a key with a range"),
    "search without -m": (["hparams_search=ppo"], "hparams_search=ppo", "add -m"),
    "launcher without -m": (["launcher=joblib"], "launcher=joblib", "add -m"),
    "removed key in a sweep": (["-m", "~seed", "seed=1,2"], "~seed", "cannot be removed"),
    "added presets of a sweep": (
        ["-m", "+experiment=cartpole_ppo,cartpole_a2c"],
        "experiment=cartpole_ppo",
        "experiment=cartpole_ppo: write it without the +",
    ),
    "added option of a sweep": (["-m", "+algo=a2c", "seed=1,2"], "algo=a2c", "without the +"),
    "mistyped option in a sweep": (["-m", "env=atari/pnog", "seed=1,2"], "env=atari/pnog", "pong?"),
    "flags that exclude each other": (["-m", "--cfg", "job"], "--multirun", "only one"),
    "sweep without -m": (["seed=1,2"], "seed=1,2", "add -m"),
    "mistake in one job of a sweep": (["-m", "seed=1,-2"], "seed=-2", "between 0"),
    "interval for the basic sweeper": (
        ["-m", "algo.gamma=interval(0,1)"],
        "algo.gamma=interval(0,1)",
        "range()",
    ),
    "mistyped key of a search": (
        ["-m", "sweeper=optuna", "algo.learnin_rate=interval(1e-5,1e-3)"],
        "algo.learnin_rate=interval(1e-5,1e-3)",
        "algo.learning_rate?",
    ),
    "mistyped key of a search's file": (
        ["-m", "hparams_search=ppo", "+hydra.sweeper.params={algo.gama:'range(0,1)'}"],
        "algo.gama=range(0,1)",
        "algo.gamma?",
    ),
    "mistyped option of a search": (
        ["-m", "sweeper=optuna", "algo=choice(ppo,a3c)"],
        "algo=a3c",
        "did you mean a2c?",
    ),
    "key of one of the algorithms of a search": (
        ["-m", "sweeper=optuna", "algo=choice(ppo,a2c)", "algo.clip_coef=interval(0.1,0.3)"],
        "algo.clip_coef=interval(0.1,0.3)",
        "no such key with algo=a2c",
    ),
    "pattern in a search": (
        ["-m", "sweeper=optuna", "algo=glob(*)"],
        "algo=glob(*)",
        "choice(A,B)",
    ),
    "resume in a sweep": (["-m", "seed=1,2", "resume=x"], "resume=x", "resume=auto"),
}


@pytest.mark.parametrize(("words", "said", "remedy"), CASES.values(), ids=CASES)
def test_refused_in_one_line(
    htsrl: Htsrl, tmp_path: Path, words: list[str], said: str, remedy: str
) -> None:
    assert_refused(htsrl("train", *words), said, remedy)
    assert list(tmp_path.iterdir()) == []


def test_sweepers_are_listed(htsrl: Htsrl) -> None:
    run = htsrl("list", "sweeper")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("optuna  ")
