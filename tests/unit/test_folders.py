"""Names of run folders: what they tell, and that commands take them without quotes."""

from __future__ import annotations

import random
import shlex
import string
from pathlib import Path

import pytest
from hydra.core.override_parser.types import Quote, QuotedString

from htsrl_cli.cli.compose import Composer, parse_overrides
from htsrl_cli.cli.folders import naming, output_dir, safe_name
from tests.conftest import Htsrl


def run_folder(*words: str, verb: str = "train") -> str:
    """Returns the folder of `htsrl train WORDS ...` without the time."""
    folder = output_dir(Composer(verb).job(words), multirun=False)
    return folder.as_posix()[: -len("2026-11-30_01-02-03-123456")]


def job_folders(*words: str) -> list[str]:
    """Returns the names of the folders of the jobs of `htsrl train -m WORDS ...`."""
    jobs = Composer("train").sweep([*words, naming(words)])[1]
    return [output_dir(job, multirun=True).name for job in jobs]


def quoted(text: str) -> str:
    """Returns `text` as Hydra reads it between quotes."""
    return str(QuotedString(text, Quote.single).with_quotes())


def assert_needs_no_quotes(folder: str) -> None:
    """Checks that a shell and Hydra read the name of a folder as it is."""
    assert shlex.quote(folder) == folder
    for key in ("checkpoint", "resume", "hydra.run.dir"):
        (override,) = parse_overrides([f"{key}={folder}"])
        assert override.value() == folder
        assert not override.is_sweep_override()


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([], "runs/atari/pong/ppo/seed1_"),
        (["algo=a2c", "seed=7"], "runs/atari/pong/a2c/seed7_"),
        (["experiment=cartpole_ppo", "seed=3"], "runs/CartPole-v1/ppo/seed3_"),
        (["env=football/5_vs_5"], "runs/football/5_vs_5/ppo/seed1_"),
        (["env=synthetic/count"], "runs/synthetic/count/ppo/seed1_"),
        (["env=gym", "env.id=my_module:MyEnv-v0"], "runs/my_module-MyEnv-v0/ppo/seed1_"),
        (["env=gym", "env.id=ALE/Pong-v5"], "runs/ALE-Pong-v5/ppo/seed1_"),
        (["env=gym", "env.id='a b=(c),d'"], "runs/a-b-c-d/ppo/seed1_"),
        (["env=gym", "env.id='../../x'"], "runs/x/ppo/seed1_"),
    ],
)
def test_run_folder_names_environment_algorithm_and_seed(words: list[str], folder: str) -> None:
    assert run_folder(*words) == folder
    assert_needs_no_quotes(run_folder(*words))


def test_benchmark_folder_names_the_environment() -> None:
    words = ("env=gym", "env.id=ALE/Pong-v5")
    assert run_folder(*words, verb="bench") == "runs/bench/ALE-Pong-v5/ppo/"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (
            ["env=atari/pong,atari/qbert", "seed=3,4", "total_steps=5000"],
            [
                "0_atari-pong_seed-3",
                "1_atari-pong_seed-4",
                "2_atari-qbert_seed-3",
                "3_atari-qbert_seed-4",
            ],
        ),
        (["experiment=cartpole_ppo", "seed=1"], ["0"]),
        (["seed=7", "total_steps=5000", "seed=1,2"], ["0_seed-1", "1_seed-2"]),
        (["experiment=cartpole_ppo,cartpole_a2c"], ["0_cartpole_ppo", "1_cartpole_a2c"]),
        (["seed=range(5,7)", "resume=null"], ["0_seed-5", "1_seed-6"]),
        (
            ["algo.learning_rate=choice(1e-3,0.000316227766,1e12)"],
            ["0_learning_rate-0.001", "1_learning_rate-0.0003162", "2_learning_rate-1e12"],
        ),
        (
            ["learner.device=cpu,cuda:0", "actors.device=cpu"],
            ["0_device-cpu", "1_device-cuda-0"],
        ),
        (
            ["learner.precision=fp32,bf16", "actors.precision=fp32,auto"],
            [
                "0_learner.precision-fp32_actors.precision-fp32",
                "1_learner.precision-fp32_actors.precision-auto",
                "2_learner.precision-bf16_actors.precision-fp32",
                "3_learner.precision-bf16_actors.precision-auto",
            ],
        ),
        (
            ["network.hidden_sizes=[64,64],[32]", "log.tensorboard=false,true"],
            [
                "0_hidden_sizes-64-64_tensorboard-false",
                "1_hidden_sizes-64-64_tensorboard-true",
                "2_hidden_sizes-32_tensorboard-false",
                "3_hidden_sizes-32_tensorboard-true",
            ],
        ),
    ],
)
def test_job_folders_name_what_differs(words: list[str], names: list[str]) -> None:
    assert job_folders(*words) == names


def test_any_value_gives_a_name_without_quotes() -> None:
    generator = random.Random(1)
    characters = string.printable + "\u00e9\u4e2d\U0001f600"
    for number in range(10):
        first, second = (
            quoted("".join(generator.choices(characters, k=generator.randint(1, 90))))
            for _ in range(2)
        )
        words = ["env=gym", f"env.id={first}", f"log.wandb={second}", f"hydra.job.num={number}"]
        job = Composer("train").job(words)
        name = output_dir(job, multirun=True).name
        assert name.startswith(f"{number}_gym_id-")
        assert len(name) <= 255
        assert_needs_no_quotes(name)
        assert_needs_no_quotes(output_dir(job, multirun=False).as_posix())


def test_long_names_are_cut_and_stay_different() -> None:
    values = ",".join(letter * 300 for letter in "ab")
    names = job_folders("env=gym", f"env.id={values}", "log.wandb=c,d")
    assert len({name.partition("_")[2] for name in names}) == 4
    assert all(len(name) <= 150 and "id-" in name for name in names)


def test_safe_name_keeps_safe_characters() -> None:
    safe = string.ascii_letters + string.digits + "_.-"
    assert safe_name(f"a{safe}z") == f"a{safe}z"
    assert safe_name("../..") == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [("0", ["seed=1,2"]), ("0_algo.gamma=0.9", ["algo.gamma=choice(0.9,0.99)", "sweeper=optuna"])],
)
def test_sweep_of_an_earlier_version_is_not_begun_anew(
    htsrl: Htsrl, tmp_path: Path, name: str, words: list[str]
) -> None:
    (tmp_path / "old" / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / name / "checkpoints" / "step_1.ckpt").touch()
    words = ["train", "-m", "env=synthetic/count", *words, "resume=auto", "hydra.sweep.dir=old"]
    run = htsrl(*words)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert f"hydra.sweep.dir=old: an earlier version of htsrl named the job's folder {name}" in line
    assert [path.name for path in (tmp_path / "old").iterdir()] == [name]
    if name == "0":
        # With the earlier names, htsrl looks into the job's folder.
        run = htsrl(*words, "hydra.sweep.subdir=${hydra.job.num}")
        assert "old/0 has no intact checkpoint" in run.stderr
