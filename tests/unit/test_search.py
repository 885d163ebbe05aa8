"""Mistakes in the search space of a sweep are refused before the sweep begins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.errors import UsageError
from tests.conftest import Htsrl
from tests.integration.refusals import assert_refused

# A sweep on the command line, and what the error says.
SWEEPS = {
    "reversed interval": ("algo.gamma=interval(0.99,0.9)", "write interval(0.9, 0.99)"),
    "logarithm of zero": ("algo.learning_rate=tag(log,interval(0,0.1))", "start above 0"),
    "logarithm of a negative": ("env.mean_ms=tag(log,interval(-1,0.1))", "start above 0"),
    "end that is not finite": ("algo.learning_rate=interval(0.1,inf)", "must be finite"),
    "end that is no number": ("algo.gamma=interval(nan,1)", "must be finite"),
    "end that is a word": ("algo.gamma=interval(low,1)", "str is incompatible"),
    "interval with one end": ("algo.gamma=interval(0.1)", "interval(A, B)"),
    "interval with three ends": ("algo.gamma=interval(0.1,0.2,0.3)", "interval(A, B)"),
    "mistyped function": ("algo.gamma=intervall(0,1)", "did you mean interval?"),
    "Optuna's name of a function": ("algo.gamma=uniform(0,1)", "choice, range, interval"),
    "mistyped function in a tag": ("algo.gamma=tag(log,interva(0,1))", "did you mean interval?"),
    "mistyped tag": ("algo.gamma=tag(lgo,interval(0.1,1))", "did you mean log?"),
    "tag of a choice": ("algo.gamma=tag(log,choice(0.9,1.0))", "only with interval()"),
    "tag of a range": ("seed=tag(log,range(1,9))", "only with interval()"),
    "empty choice": ("algo.gamma=choice()", "empty choice"),
    "reversed range": ("seed=range(5,1)", "the range is empty"),
    "reversed range in another order": ("seed=shuffle(range(5,1))", "the range is empty"),
    "range without a step": ("seed=range(1,5,0)", "greater than 0"),
    "range with a negative step": ("seed=range(5,1,-1)", "greater than 0"),
    "step longer than the range": ("seed=range(1,3,10)", "holds only 1"),
    "fraction as a step": ("seed=range(1,3,0.3)", "1.3 must be an integer"),
    "interval of an integer": (
        "runner.sync_interval=interval(8,128)",
        "write int(interval(8,128))",
    ),
    "logarithmic interval of an integer": (
        "runner.sync_interval=tag(log,interval(8,128))",
        "write int(tag(log,interval(8,128)))",
    ),
    "end above the key's range": ("algo.gamma=interval(0.9,1.1)", "1.1 must be between"),
    "end below the key's range": ("algo.entropy_coef=interval(-0.1,0.1)", "-0.1 must be finite"),
    "end of a range above": ("algo.gamma=range(0.8,1.2,0.2)", "1.2000000000000002 must be"),
    "choice above the key's range": ("algo.gamma=choice(0.9,1.1)", "1.1 must be between"),
    "choice of another type": ("algo.gamma=choice(0.9,high)", "high must be a number"),
    "choice of a list's entry": ("network.hidden_sizes=choice([64],32)", "32 must be a list"),
    "choice of an unknown word": ("learner.precision=choice(fp32,fp16)", "fp16 must be one of"),
    "interval of a word": ("learner.precision=interval(0,1)", "must be a string"),
    "no trials": ("hydra.sweeper.n_trials=0", "between 1 and"),
    "no trials at a time": ("hydra.sweeper.n_jobs=0", "between 1 and"),
    "mistyped direction": ("hydra.sweeper.direction=maximise", "did you mean maximize?"),
    "rate above one": ("hydra.sweeper.max_failure_rate=2", "between 0.0 and 1.0"),
    "space without a file": ("hydra.sweeper.params={algo.gamma:1}", "use a YAML file"),
}
# Lines of a YAML file below `hydra.sweeper`, and what the error says.
FILES = {
    "reversed": ("params: {algo.gamma: 'interval(0.9, 0.1)'}", "algo.gamma=interval(0.9, 0.1): "),
    "mistyped function": ("params: {algo.gamma: 'intervl(0, 1)'}", "did you mean interval?"),
    "mistyped key": ("params: {algo.gama: 'interval(0, 1)'}", "did you mean algo.gamma?"),
    "above the range": ("params: {algo.gamma: 'interval(0, 2)'}", "2.0 must be between"),
    "section": ("params: {algo: {gamma: 'interval(0, 1)'}}", "write the name of each key in full"),
    "reversed older form": (
        "search_space: {algo.gamma: {type: float, low: 0.9, high: 0.1}}",
        "write interval(0.1, 0.9)",
    ),
    "mistyped type": (
        "search_space: {algo.gamma: {type: flaot, low: 0.1, high: 0.9}}",
        "did you mean float?",
    ),
    "no end": ("search_space: {algo.gamma: {type: float, low: 0.1}}", "algo.gamma.high=null"),
    "no choices": ("search_space: {algo: {type: categorical, choices: []}}", "algo.choices=null"),
    "no dictionary": ("search_space: {algo.gamma: 'interval(0, 1)'}", "must hold type"),
    "unknown option": (
        "search_space: {algo: {type: categorical, choices: [ppo, a3c]}}",
        "did you mean a2c?",
    ),
    "step above the range": (
        "search_space: {algo.gamma: {type: float, low: 0.5, high: 1.1, step: 0.1}}",
        "1.1 must be between",
    ),
}
COMPOSER = Composer("train")


@pytest.mark.parametrize(("word", "remedy"), SWEEPS.values(), ids=SWEEPS)
def test_sweep_is_refused(word: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        COMPOSER.sweep(["env=synthetic/count", "sweeper=optuna", word])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(word.partition("=")[0])
    assert remedy in line


def test_refusal_is_one_line_and_writes_nothing(htsrl: Htsrl, tmp_path: Path) -> None:
    word = "algo.gamma=interval(0.99,0.9)"
    assert_refused(htsrl("train", "-m", "sweeper=optuna", word), word, "write interval(0.9, 0.99)")
    assert list(tmp_path.iterdir()) == []


def search_file(folder: Path, lines: str) -> None:
    """Writes the option `mine` of `hparams_search` with lines below `hydra.sweeper`."""
    (folder / "hparams_search").mkdir()
    (folder / "hparams_search" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /sweeper: optuna\n\n"
        f"hydra:\n  sweeper:\n    {lines}\n"
    )


@pytest.mark.parametrize(("lines", "remedy"), FILES.values(), ids=FILES)
def test_file_of_a_search_is_refused(tmp_path: Path, lines: str, remedy: str) -> None:
    search_file(tmp_path, lines)
    with pytest.raises(UsageError) as caught:
        Composer("train", str(tmp_path)).sweep(["hparams_search=mine"])
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["runner.sync_interval=int(interval(8,128))"],
        ["runner.sync_interval=int(tag(log,interval(8,128)))"],
        ["algo.gamma=interval(0,1)", "algo.learning_rate=tag(log,interval(1e-9,1))"],
        ["seed=range(1,9,2)", "algo.gamma=range(0.1,0.9,0.1)", "seed=shuffle(range(1,9))"],
        ["network.hidden_sizes=choice([64],[32,32])", "log.wandb=choice(a,b)"],
        # Only some values of a key may fit those of other keys: the other trials fail.
        ["algo.num_minibatches=choice(3,4)"],
    ],
)
def test_valid_search_is_accepted(words: list[str]) -> None:
    (job,) = COMPOSER.sweep(["sweeper=optuna", *words])[1]
    assert to_train_config(job).seed == 1


def test_valid_older_form_is_accepted(tmp_path: Path) -> None:
    search_file(
        tmp_path,
        "search_space: {runner.sync_interval: {type: int, low: 16, high: 64, log: true}, "
        "algo: {type: categorical, choices: [ppo, a2c]}}",
    )
    jobs = Composer("train", str(tmp_path)).sweep(["hparams_search=mine"])[1]
    assert [to_train_config(job).algo.name for job in jobs] == ["ppo", "a2c"]


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("seed=range(5,1)", "holds no value"),
        ("seed=range(1,5,0)", "must not be zero"),
        ("seed=choice()", "empty choice"),
        ("seed=rnge(1,5)", "did you mean range?"),
    ],
)
def test_sweep_without_a_search_is_refused(word: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=re.escape(word)) as caught:
        COMPOSER.sweep([word])
    assert remedy in str(caught.value)
