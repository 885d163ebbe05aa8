"""Digests of short runs of every kind, to show that a code change changes no result.

    python -m scripts.reference_hashes record FILE      before the change
    python -m scripts.reference_hashes compare FILE     after it, on the same machine

Runs are started with `htsrl train`, as users start them. Each kind of run is made once with every
runner. One more run of each kind, with the default runner, is stopped by SIGTERM and resumed.
Digests are valid only on one machine, because other processors may round differently. Kinds that
cannot run on this machine (because it lacks the football engine or bf16) are skipped, and the
output names them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from htsrl_cli.machine import has_bf16

ROOT = Path(__file__).resolve().parent.parent
RUNNERS = ("hts", "serial", "sync")
DIGESTS = ("params_sha256", "optimizer_sha256", "rollouts_sha256")
# The runs are small enough to take only seconds, but large enough to use several threads and
# minibatches and to contain ends of episodes.
_COMMON = ("log.tensorboard=false", "checkpoint.interval=512", "log.interval=256", "seed=5")
_ATARI = ("env=atari/pong", "actors.num_envs=8", "runner.sync_interval=16", "total_steps=2048")
_BF16 = ("actors.precision=bf16", "learner.precision=bf16")
_VECTOR = ("actors.num_envs=8", "runner.sync_interval=32", "total_steps=8192")
_TEAM = ("env=synthetic/sleep", "env.mean_ms=0.1", "env.num_players=3", *_VECTOR)
RUNS: dict[str, tuple[str, ...]] = {
    "pong-ppo-fp32": (*_ATARI, "algo=ppo"),
    "pong-a2c-fp32": (*_ATARI, "algo=a2c"),
    "pong-ppo-bf16": (*_ATARI, "algo=ppo", *_BF16),
    "pong-a2c-bf16": (*_ATARI, "algo=a2c", *_BF16),
    "cartpole-ppo": ("experiment=cartpole_ppo", *_VECTOR),
    "pendulum-a2c": ("env=gym", "env.id=Pendulum-v1", "algo=a2c", *_VECTOR),
    "team-shared-ppo": (*_TEAM, "algo=ppo", "algo.policies=shared", "env.truncate=true"),
    "team-independent-a2c": (*_TEAM, "algo=a2c", "algo.policies=independent"),
    "football-ppo": (
        "experiment=football_ppo",
        "env=football/academy_3_vs_1_with_keeper",
        "actors.num_envs=4",
        "runner.sync_interval=32",
        "total_steps=1024",
    ),
}


def main() -> int:
    """Records or compares digests; returns 1 if one differs or is not in the record, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument(
        "--checkout", type=Path, default=ROOT, help="checkout of htsrl to run (default: this one)"
    )
    parser.add_argument(
        "--words",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="further overrides of all runs, for example to keep defaults that the change replaced",
    )
    args = parser.parse_args()
    if args.action == "record":
        found = dict(measure(args.only, args.checkout.resolve(), args.words))
        args.file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return 0
    recorded = json.loads(args.file.read_text(encoding="utf-8"))
    measured = dict(measure(args.only, args.checkout.resolve(), args.words))
    missing_runs = measured.keys() - recorded.keys()
    wrong = [name for name in measured.keys() & recorded.keys() if measured[name] != recorded[name]]
    for name in sorted(wrong):
        print(f"{name}: DIFFERS: the record has {recorded[name]}")
    for name in sorted(missing_runs):
        print(f"{name}: the record does not have this run")
    print(f"{len(wrong)} of {len(measured)} runs differ, {len(missing_runs)} are not in the record")
    return 1 if wrong or missing_runs else 0


def measure(
    names: Sequence[str], checkout: Path, more: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Makes the runs of each kind in `names`; prints and yields the name and digests of each run.

    Kinds that cannot run on this machine are skipped. The overrides `more` apply to all runs.
    """
    for name in names:
        if reason := missing(name):
            print(f"{name}: skipped: {reason}", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="htsrl-hashes-") as folder:
            for runner in RUNNERS:
                words = [*RUNS[name], *_COMMON, *more, f"runner={runner}"]
                yield _shown(f"{name}/{runner}", digests_of(words, checkout, Path(folder, runner)))
            words = [*RUNS[name], *_COMMON, *more]
            yield _shown(f"{name}/resumed", resumed(words, checkout, Path(folder, "resumed")))


def missing(name: str) -> str | None:
    """Returns why this machine cannot make the run `name`; None if it can."""
    if name.endswith("bf16") and not has_bf16():
        return "this processor has no bf16"
    if name.startswith("football") and importlib.util.find_spec("gfootball_engine") is None:
        return "the football engine is not installed"
    return None


def digests_of(words: Sequence[str], checkout: Path, run_dir: Path) -> dict[str, str]:
    """Runs `htsrl train` to its end; returns the digests of the run."""
    subprocess.run(_command(words, run_dir), cwd=checkout, check=True, **_QUIET)
    return _digests(run_dir)


def resumed(words: Sequence[str], checkout: Path, run_dir: Path) -> dict[str, str]:
    """Stops a run after its first line of metrics and resumes it; returns its digests."""
    process = subprocess.Popen(_command(words, run_dir), cwd=checkout, **_QUIET)
    while not (run_dir / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    status = process.wait()
    if status not in (0, 128 + signal.SIGTERM):
        raise SystemExit(f"htsrl train {' '.join(words)}: exit status {status}")
    subprocess.run(_command([f"resume={run_dir}"], None), cwd=checkout, check=True, **_QUIET)
    return _digests(run_dir)


_QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _command(words: Sequence[str], run_dir: Path | None) -> list[str]:
    folder = [] if run_dir is None else [f"hydra.run.dir={run_dir}"]
    return [sys.executable, "-m", "htsrl_cli", "train", *words, *folder]


def _digests(run_dir: Path) -> dict[str, str]:
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return {name: summary[name] for name in DIGESTS}


def _shown(name: str, digests: dict[str, str]) -> tuple[str, dict[str, str]]:
    print(name, *(digest[:12] for digest in digests.values()), flush=True)
    return name, digests


if __name__ == "__main__":
    sys.exit(main())
