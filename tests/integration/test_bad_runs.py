"""Runs and checkpoints that do not fit what the user asks: exit code 2, one line, nothing lost."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from htsrl_cli.checkpoints.file import Checkpoint, save_checkpoint
from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.cli.job import plan_job
from htsrl_cli.cli.resumed import fit_overrides
from htsrl_cli.config.plain import to_plain
from tests.conftest import Htsrl
from tests.integration.refusals import assert_refused


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Returns a run's folder with a checkpoint that has only what a resume checks first."""
    config = to_train_config(Composer("train").job(["env=synthetic/count", "seed=7"]))
    meta = {"config": to_plain(config), "env_steps": 2048, "metric": None}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    save_checkpoint(
        tmp_path / "run" / "checkpoints" / "step_000000002048.ckpt",
        Checkpoint({"learner/params/weight": np.zeros(1000, np.float32)}, meta),
    )
    return tmp_path / "run"


def contents(folder: Path) -> dict[Path, bytes]:
    """Returns the contents of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "said", "remedy"),
    [
        (["seed=8"], "seed=8", "the run has 7"),
        (["total_steps=1_000_000"], "total_steps=1000000", "raise total_steps"),
        (["algo=a2c"], "algo.name=a2c", "the run has ppo"),
        (["env=gym", "env.id=CartPole-v1"], "env.kind=gym", "the run has synthetic"),
        (["runner=sync"], "runner.name=sync", "the run has hts"),
        (["env.episode_length=5"], "env.episode_length=5", "the run has 100: leave this key out"),
        (["env.game=qbert"], "env.game=qbert", "the run has no such key"),
        (["env.episode_lenth=5"], "env.episode_lenth=5", "did you mean env.episode_length?"),
        (["algo.clip_coef=0.3"], "algo.clip_coef=0.3", "the run has 0.1: leave this key out"),
        (["algo.rmsprop_eps=1e-3"], "algo.rmsprop_eps=", "the run has no such key"),
        (["algo.correction=none"], "algo.correction=none", "the run has vtrace: leave this key"),
        (["algo.reevaluate=true"], "algo.reevaluate=true", "write algo.correction=proximal"),
        (["network.hidden_sizes=[3]"], "network.hidden_sizes=[3]", "the run has [64, 64]"),
        (["~seed"], "~seed", "cannot be removed"),
        (["actors.inference_batch=4"], "actors.inference_batch=4", "the run has 8"),
        (["actors.num_executors=17"], "actors.num_executors=17", "at most actors.num_envs=16"),
        (["hydra.run.dir=other"], "hydra.run.dir=other", "leave this key out"),
    ],
)
def test_resume_keeps_what_changes_results(
    htsrl: Htsrl, run_dir: Path, words: list[str], said: str, remedy: str
) -> None:
    before = contents(run_dir.parent)
    assert_refused(htsrl("train", "resume=run", *words), said, remedy)
    assert contents(run_dir.parent) == before


def saved_run(folder: Path, *words: str) -> None:
    """Writes a run folder with the configuration of `htsrl train WORDS ...` and no arrays."""
    config = to_train_config(Composer("train").job(words))
    (folder / "checkpoints").mkdir(parents=True)
    path = folder / "checkpoints" / "step_000000002048.ckpt"
    save_checkpoint(path, Checkpoint({}, {"config": to_plain(config), "env_steps": 2048}))


CARTPOLE = ["env=gym", "env.id=CartPole-v1", "algo=a2c"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["env.id=Acrobot-v1"], "env.id=Acrobot-v1: the run has CartPole-v1: leave this key out"),
        (["env.max_episode_steps=9"], "env.max_episode_steps=9: the run has null: leave this"),
        (["algo.rmsprop_eps=0.5"], "algo.rmsprop_eps=0.5: the run has 1e-05: leave this key out"),
        (["algo.clip_coef=0.1"], "algo.clip_coef=0.1: the run has no such key"),
        (["algo.rmsprop_ep=1"], "algo.rmsprop_ep=1: the run has no such key (did you mean algo.r"),
        (["env=atari/pong", "env.game=qbert"], "env.kind=atari: the run has gym: leave this key"),
        (["+env.kwargs.sutton=true"], "env.kwargs.sutton=true: the run has no such key"),
    ],
)
@pytest.mark.parametrize("resume", [["resume=run"], ["resume=auto", "hydra.run.dir=run"]])
def test_resume_compares_with_the_kinds_of_the_run(
    htsrl: Htsrl, tmp_path: Path, resume: list[str], words: list[str], said: str
) -> None:
    saved_run(tmp_path / "run", *CARTPOLE)
    before = contents(tmp_path)
    assert_refused(htsrl("train", *resume, *words), said)
    assert contents(tmp_path) == before


def test_resume_accepts_the_values_of_the_run(htsrl: Htsrl, tmp_path: Path) -> None:
    run = tmp_path / "run"
    saved_run(run, *CARTPOLE)
    words = [f"resume={run}", "env.id=CartPole-v1", "algo.rmsprop_eps=1e-5", "env.step_timeout_s=9"]
    shown = htsrl("train", *words, "--cfg", "job")
    assert (shown.returncode, shown.stderr) == (0, "")
    fitted = fit_overrides(words)
    job = plan_job(Composer("train").job(fitted), fitted, tmp_path, tmp_path)
    composed = to_train_config(Composer("train").job(CARTPOLE))
    assert job.config == replace(composed, env=replace(composed.env, step_timeout_s=9.0))


def test_run_folder_is_not_overwritten(htsrl: Htsrl, run_dir: Path) -> None:
    before = contents(run_dir.parent)
    assert_refused(htsrl("train", "hydra.run.dir=run"), "hydra.run.dir=run", "resume=auto")
    sweep = ["-m", "hydra.sweep.dir=.", "hydra.sweep.subdir=run", "seed=1"]
    assert_refused(htsrl("train", *sweep), "hydra.run.dir=run", "resume=auto")
    assert contents(run_dir.parent) == before


def test_damaged_checkpoints(htsrl: Htsrl, run_dir: Path) -> None:
    path = next((run_dir / "checkpoints").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    for words in (["train", f"resume={path}"], ["eval", f"checkpoint={path}"]):
        assert_refused(htsrl(*words), str(path), "truncated")
    assert_refused(htsrl("train", "resume=run"), "run", "no intact checkpoint")
    assert_refused(htsrl("train", "hydra.run.dir=run", "resume=auto"), "no intact checkpoint")


def test_renderer_of_another_environment(htsrl: Htsrl, tmp_path: Path) -> None:
    config = to_train_config(Composer("train").job(["env=atari/pong"]))
    path = tmp_path / "pong.ckpt"
    save_checkpoint(path, Checkpoint({}, {"config": to_plain(config)}))
    run = htsrl("eval", f"checkpoint={path}", "video=true", "renderer=engine")
    assert_refused(run, "renderer=engine: must be one of screen")


class Hostile:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("executed", "w")


def test_pickle_as_a_checkpoint_is_not_executed(htsrl: Htsrl, tmp_path: Path) -> None:
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(pickle.dumps(Hostile()))
    for words in (["train", f"resume={path}"], ["eval", f"checkpoint={path}"]):
        assert_refused(htsrl(*words), str(path), "not a checkpoint")
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoint_without_configuration(htsrl: Htsrl, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    save_checkpoint(path, Checkpoint({}, {"config": {"seed": 1}}))
    assert_refused(htsrl("train", f"resume={path}"), str(path), "cannot use the configuration")
