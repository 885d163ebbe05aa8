"""`htsrl bench`: the rates of runs, the bound, and one whole benchmark."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from torch import Tensor

from htsrl_cli.bench import benchmark, measured_run, microbenchmarks
from htsrl_cli.bench.benchmark import RESULT_FILE, train_words
from htsrl_cli.bench.measured_run import ROLES, MeasuredRun, Sample, summarize
from htsrl_cli.bench.microbenchmarks import OneThread
from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.config.rules import LINEAR_KERNELS
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import RunError
from htsrl_cli.machine import num_cores
from htsrl_cli.networks.activations import CachedLayers
from tests import sections
from tests.fault.processes import PATIENCE_S, wait_until
from tests.harness import environment


def line(env_steps: int, seconds: float, **times: float) -> dict[str, float]:
    named = {f"time/{name}": value for name, value in times.items()}
    return {"env_steps": env_steps, "time/seconds": seconds, **named}


def sample(at: float, *cpu_s: float) -> Sample:
    return Sample(at, dict(zip(ROLES, cpu_s, strict=True)), pss_mb=at)


def test_rates_leave_out_what_comes_before_the_first_line() -> None:
    lines = [line(100 * i, 50.0 + 2 * i, barrier=i / 10) for i in (1, 2, 3)]
    run = summarize("x", lines, (sample(10.0, 1, 2, 3), sample(14.0, 3, 2, 4)), 0.0)
    assert (run.env_steps, run.seconds, run.rate) == (200, 4.0, 50.0)
    assert run.times["barrier"] == pytest.approx(0.25)
    # 2, 0 and 1 seconds of processor time for 200 env steps in 4 seconds.
    assert run.cpu_ms == {"executors": 10.0, "actors": 0.0, "learner": 5.0}
    assert run.pss_mb == 14.0


def rates(actors: str, learner: str) -> OneThread:
    """Returns rates that cost 1, 0.5 and 2 ms for an env step."""
    return OneThread(1000.0, 4000.0, 4000.0, 2, 4, ("cpu", actors, learner))


def test_the_bound_of_a_processor_adds_all_costs() -> None:
    assert rates("cpu", "cpu").cost_ms == (1.0, 0.5, 2.0)
    assert rates("cpu", "cpu").bound == pytest.approx(num_cores() * 1000 / 3.5)


def test_the_bound_with_a_gpu_is_that_of_the_busier_device() -> None:
    assert rates("cuda:0", "cuda:0").bound == pytest.approx(min(1000 / 2.5, num_cores() * 1000))
    assert rates("cpu", "cuda:0").bound == pytest.approx(min(1000 / 2, num_cores() * 1000 / 1.5))


def test_only_what_training_takes_is_passed_on() -> None:
    own = ["bench.seconds=2", "bench.runners=[hts]", "runner=sync", "total_steps=5"]
    passed = ["env=atari/pong", "runner.sync_interval=20", "+env.kwargs.x=1"]
    assert train_words([*passed, *own]) == passed


def config(*words: str) -> TrainConfig:
    return to_train_config(Composer("train").job(words))


@pytest.mark.parametrize(("algo", "cached"), [("a2c", True), ("ppo", False)])
def test_training_is_measured_as_the_learner_does_it(
    algo: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks that A2C on images is measured without forward passes, as actors keep activations."""
    made: list[int] = []

    class Counted(CachedLayers):
        def __init__(self, outputs: Sequence[Tensor]) -> None:
            made.append(len(outputs))
            super().__init__(outputs)

    monkeypatch.setattr(microbenchmarks, "CachedLayers", Counted)
    words = ["env=atari/pong", "actors.num_envs=2", "runner.sync_interval=4"]
    measured = OneThread.measure(config(*words, f"algo={algo}"), 0.01)
    assert min(measured.env, measured.inference, measured.train) > 0
    assert set(made) == ({4} if cached else set())
    assert measured.kernel in LINEAR_KERNELS
    # The kernel that was not the fastest costs more; the fastest costs nothing.
    excess = [
        OneThread.measure(config(*words, f"algo={algo}", f"network.linear_kernel={kernel}"), 0.05)
        for kernel in LINEAR_KERNELS
    ]
    assert all(
        (rates.excess_ms > 0) == (rates.kernel != kernel)
        for rates, kernel in zip(excess, LINEAR_KERNELS, strict=True)
    )


def test_kernels_are_compared_only_where_they_matter() -> None:
    assert OneThread.measure(config("env=synthetic/count"), 0.01).kernel == ""


def test_the_table_names_the_fastest_kernel_and_the_cost_of_another_one() -> None:
    own = config("env=atari/pong", "network.linear_kernel=convolution")
    times = dict.fromkeys(
        [
            *(f"{role}_busy" for role in ROLES),
            "collecting",
            "barrier",
            "inference_passes_per_second",
        ],
        1.0,
    )
    run = MeasuredRun("hts", 100.0, 100, 1.0, times, dict.fromkeys(ROLES, 1.0), 1.0, 0.0)
    one_thread = OneThread(1000.0, 4000.0, 4000.0, 1, 4, ("cpu",) * 3, "product", 1.25)
    console = Console(width=120, record=True)
    console.print(benchmark._table(own, [run], [one_thread], [50.0]))
    row = next(line for line in console.export_text().splitlines() if "linear layer" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == [
        "product",
        "",
        "convolution: +1.250 ms",
    ]


@pytest.mark.slow
def test_a_whole_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["env=synthetic/count", "runner.sync_interval=16", "log.tensorboard=false"]
    bench = sections.bench(runners=("serial", "hts"), repeats=2, seconds=0.5, micro_seconds=0.05)
    rate = benchmark.run_benchmark(bench, config(*words), words, tmp_path)
    report = json.loads((tmp_path / RESULT_FILE).read_text())
    assert [run["name"] for run in report["runs"]] == ["serial", "hts"] * 2
    serial = sorted(run["rate"] for run in report["runs"] if run["name"] == "serial")
    assert rate == pytest.approx(sum(serial) / 2)
    assert len(report["one_thread"]) == len(report["env_alone"]) == 2
    assert min(report["env_alone"]) > 0
    for run in report["runs"]:
        assert run["env_steps"] % (16 * 16) == 0
        assert run["env_steps"] > 0
        assert 0 < run["times"]["learner_busy"] <= 1
        assert run["times"]["inference_passes_per_second"] >= run["rate"] / 8
        assert run["pss_mb"] > 10
    # A role's processor time is found by the names of its processes.
    hts = next(run for run in report["runs"] if run["name"] == "hts")
    assert all(hts["cpu_ms"][role] > 0 for role in ROLES)
    table = capsys.readouterr().out
    assert "of the bound" in table
    assert f"{rate:.1f}" in table


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"runner\.sync_interval=0"):
        measured_run.measure("x", ["runner.sync_interval=0"], 1.0)


def test_a_slow_run_is_given_the_time_for_a_rate() -> None:
    run = measured_run.measure("x", ["env=synthetic/sleep", "env.mean_ms=2"], 0.0)
    assert run.env_steps > 0
    assert run.rate > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_benchmark_that_ends_takes_its_run_with_it(tmp_path: Path, number: int) -> None:
    words = ["env=synthetic/count", "bench.micro_seconds=0.05", "hydra.run.dir=bench"]
    start = [sys.executable, "-m", "htsrl_cli", "bench", *words]
    bench = subprocess.Popen(start, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    main = psutil.Process(bench.pid)
    wait_until(main.children, "a run")
    runs = main.children(recursive=True)
    bench.send_signal(number)
    assert bench.wait() == (128 + number if number == signal.SIGTERM else -number)
    psutil.wait_procs(runs, PATIENCE_S)
    assert not any(run.is_running() for run in runs)
