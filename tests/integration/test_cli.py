"""The `htsrl` command: help, folders, exit codes, sweeps, completion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import htsrl_cli
from tests.conftest import ROOT, Htsrl

# A few small rollouts in one thread.
TINY = (
    "env=synthetic/count",
    "runner=serial",
    "runner.sync_interval=8",
    "actors.num_envs=4",
    "actors.inference_batch=4",
    "algo.num_minibatches=1",
    "algo.update_epochs=1",
    "network.hidden_sizes=[8]",
    "learner.micro_batch=32",
    "learner.num_threads=1",
)
# A program that runs `htsrl` with a fake runner, which executes the statement `end` for seed 1.
WITH_RUNNER = """
import sys, types
from htsrl_cli import errors
runner = types.ModuleType("htsrl_cli.runners.run")
def train(config, run_dir, checkpoint, check_folder):
    print("seed", config.seed)
    if config.seed > 1:
        return types.SimpleNamespace(metric=1.0, signum=None)
    {end}
runner.train = train
sys.modules["htsrl_cli.runners.run"] = runner
from htsrl_cli.cli.main import main
sys.exit(main())
"""
# A program that runs `htsrl` and reports whether torch was imported, even if Hydra exits.
LOOKS = """
import sys
from htsrl_cli.cli.main import main
heavy = {"torch", "hydra", "omegaconf"}
assert not heavy & set(sys.modules), "workers import this module, too"
try:
    main(sys.argv[1:])
finally:
    print("torch imported:", "torch" in sys.modules, file=sys.stderr)
"""


def run_with_runner(cwd: Path, end: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `htsrl train WORDS ...` with the statement `end` as the training of seed 1."""
    return subprocess.run(
        [sys.executable, "-c", WITH_RUNNER.format(end=end), "train", *TINY, *words],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        check=False,
    )


def test_help_and_version(htsrl: Htsrl, tmp_path: Path) -> None:
    assert "htsrl train" in htsrl("--help").stdout
    for words in (["--version"], ["train", "--version"]):
        assert htsrl(*words).stdout == f"htsrl {htsrl_cli.__version__}\n"
    text = htsrl("train", "--help").stdout
    for shown in (
        "env: atari/alien, ",
        "algo: a2c, impala, ppo",
        "learning_rate: 0.00025",
        "--cfg job",
    ):
        assert shown in text
    assert "greedy: null" in htsrl("eval", "--help").stdout
    assert "repeats: 3" in htsrl("bench", "--help").stdout
    assert list(tmp_path.iterdir()) == []


def test_configuration_is_shown_as_it_would_be_used(htsrl: Htsrl, tmp_path: Path) -> None:
    run = htsrl("train", "algo=a2c", "--cfg", "job", "seed=5")
    shown = OmegaConf.create(run.stdout)
    assert (run.returncode, shown.algo.name, shown.seed) == (0, "a2c", 5)
    # Keys without a value are shown, too.
    assert "id: ???" in htsrl("train", "env=gym", "--cfg", "job").stdout
    assert "runs/" in htsrl("train", "--cfg", "hydra").stdout
    assert "Config search path" in htsrl("train", "--info", "searchpath").stdout
    assert list(tmp_path.iterdir()) == []


def test_a_reader_may_stop_early() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "htsrl_cli", "train", "--help"]
    run = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr) == (-signal.SIGPIPE, "")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "--cfg", "job"]])
def test_looking_imports_no_torch(tmp_path: Path, words: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOOKS, *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "torch imported: False\n")


def test_completion(htsrl: Htsrl) -> None:
    def complete(line: str) -> list[str]:
        return htsrl("-sc", "query=bash", env={"COMP_LINE": line}).stdout.split()

    assert complete("htsrl ") == ["train", "eval", "bench", "list", "report"]
    assert complete("htsrl tr") == ["train"]
    assert complete("htsrl train algo=") == ["algo=a2c", "algo=impala", "algo=ppo"]
    assert complete("htsrl train algo.gam") == ["algo.gamma="]
    assert complete("htsrl eval gr") == ["greedy="]
    assert complete("htsrl bench bench.rep") == ["bench.repeats="]
    assert complete("htsrl list e") == ["env", "experiment"]
    assert complete("htsrl report ") == []
    assert complete("htsrl train env=atari/ms_p") == ["env=atari/ms_pacman"]
    assert "complete " in htsrl("-sc", "install=bash").stdout
    # Fish expects one candidate per line.
    fish = htsrl("-sc", "query=fish", env={"COMP_LINE": "htsrl train algo="})
    assert fish.stdout == "algo=a2c\nalgo=impala\nalgo=ppo\n"


def test_list(htsrl: Htsrl) -> None:
    games = htsrl("list", "env").stdout.splitlines()
    assert "atari/pong" in games
    assert any(line.startswith("gym  ") and "Gymnasium" in line for line in games)
    assert len(games) == len(set(games)) == 57 + 18 + 3 + 1
    everything = htsrl("list").stdout
    assert "algo:\n  a2c     Advantage actor-critic" in everything
    assert "  cartpole_ppo" in everything
    run = htsrl("list", "envs")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "did you mean env?" in run.stderr


def test_user_configurations(htsrl: Htsrl, tmp_path: Path) -> None:
    (tmp_path / "mine" / "env").mkdir(parents=True)
    (tmp_path / "mine" / "env" / "pole.yaml").write_text("kind: gym\nid: CartPole-v1\n")
    shown = htsrl("train", "--config-dir", "mine", "env=pole", "--cfg", "job").stdout
    assert OmegaConf.create(shown).env.id == "CartPole-v1"


def test_run_folder(htsrl: Htsrl, tmp_path: Path) -> None:
    run = htsrl("train", *TINY, "total_steps=96", "hydra.run.dir='a folder, of (mine)'")
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "a folder, of (mine)"
    assert list(tmp_path.iterdir()) == [folder]
    config = OmegaConf.load(folder / "config.yaml")
    assert (config.total_steps, config.runner.name) == (96, "serial")
    assert (folder / ".hydra" / "overrides.yaml").exists()
    assert (folder / "train.log").exists()
    assert any((folder / "checkpoints").iterdir())


def test_runs_of_the_same_second_do_not_collide(tmp_path: Path, htsrl: Htsrl) -> None:
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: run_with_runner(tmp_path, "pass", "seed=2"), range(4)))
    assert [run.returncode for run in done] == [0] * 4
    folders = list((tmp_path / "runs" / "synthetic" / "count" / "ppo").iterdir())
    assert len(folders) == 4
    assert all(folder.name.startswith("seed2_") for folder in folders)


def test_sweep(tmp_path: Path) -> None:
    run = run_with_runner(tmp_path, "pass", "-m", "seed=2,3", "hydra.sweep.dir=sweep")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "seed 2\nseed 3\n"
    names = ["0_seed-2", "1_seed-3"]
    seeds = [OmegaConf.load(tmp_path / "sweep" / name / "config.yaml").seed for name in names]
    assert seeds == [2, 3]


def test_report(htsrl: Htsrl, tmp_path: Path) -> None:
    words = [*TINY, "env=synthetic/sleep", "env.mean_ms=0", "total_steps=1024", "log.interval=256"]
    assert htsrl("train", "-m", *words, "algo=ppo", "seed=1,2").returncode == 0
    run = htsrl("report", "runs", "--output", "compared")
    assert run.returncode == 0, run.stderr
    (row,) = json.loads((tmp_path / "compared" / "report.json").read_text())
    assert (row["runs"], row["env_steps"]) == (2, [1024, 1024])
    page = (tmp_path / "compared" / "report.html").read_text()
    for summary in tmp_path.rglob("summary.json"):
        stored = json.loads(summary.read_text())
        facts = [stored["params_sha256"], stored["machine"]["processor"]]
        facts += [" ".join(pair) for pair in stored["versions"].items()]
        assert all(fact in page for fact in facts), facts
    for words in (["report"], ["report", "compared"], ["report", "runs", "--outptu=x"]):
        run = htsrl(*words)
        assert (run.returncode, run.stderr.count("\n")) == (2, 1)


def test_failed_run(tmp_path: Path) -> None:
    error = 'raise errors.WorkerError("executor 0 died\\nits traceback")'
    run = run_with_runner(tmp_path, error, "seed=1")
    assert run.returncode == 1
    assert run.stderr == "htsrl: error: executor 0 died\nits traceback\n"


def test_failed_run_of_a_sweep_stops_no_other(tmp_path: Path) -> None:
    run = run_with_runner(tmp_path, 'raise errors.RunError("full")', "-m", "seed=1,2")
    assert run.returncode == 1
    assert run.stdout == "seed 1\nseed 2\n"
    assert "Traceback" not in run.stderr
    assert run.stderr.endswith("htsrl: error: full\n")


def test_signal_ends_a_run_and_a_whole_sweep(tmp_path: Path) -> None:
    stopped = "return types.SimpleNamespace(metric=None, signum=15)"
    assert run_with_runner(tmp_path, stopped, "seed=1").returncode == 143
    run = run_with_runner(tmp_path, stopped, "-m", "seed=1,2")
    assert (run.returncode, run.stdout) == (143, "seed 1\n")


def test_interrupt_before_the_run(tmp_path: Path) -> None:
    run = run_with_runner(tmp_path, "raise KeyboardInterrupt", "seed=1")
    assert (run.returncode, run.stderr) == (130, "")


def test_resume_goes_on_in_the_same_folder(htsrl: Htsrl, tmp_path: Path) -> None:
    first = htsrl("train", *TINY, "total_steps=96", "hydra.run.dir=run", "resume=auto")
    assert first.returncode == 0, first.stderr
    record = (tmp_path / "run" / ".hydra" / "overrides.yaml").read_bytes()
    for number, words in enumerate(
        [
            # By the run's folder, by a checkpoint file, and by the same command line.
            ["resume=run", "total_steps=128"],
            [f"resume={tmp_path}/run/checkpoints/step_000000000128.ckpt", "total_steps=160"],
            [*TINY, "total_steps=192", "hydra.run.dir=run", "resume=auto"],
        ]
    ):
        run = htsrl("train", *words)
        assert run.returncode == 0, run.stderr
        assert OmegaConf.load(tmp_path / "run" / "config.yaml").total_steps == 128 + 32 * number
        assert (tmp_path / "run" / ".hydra" / "overrides.yaml").read_bytes() == record
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_resume_with_other_worker_counts(htsrl: Htsrl, tmp_path: Path) -> None:
    assert htsrl("train", *TINY, "total_steps=96", "hydra.run.dir=run").returncode == 0
    words = ["resume=run", "total_steps=128", "runner=hts", "actors.num_executors=4"]
    run = htsrl("train", *words)
    assert run.returncode == 0, run.stderr
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (config.runner.name, config.actors.num_executors) == ("hts", 4)
    assert config.network.hidden_sizes == [8]
