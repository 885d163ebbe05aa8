"""Random faults in resumed runs: the hashes at the end must be those of an uninterrupted run.

    python -m scripts.random_faults --faults 1000 --folder build/random_faults

A small run of a synthetic environment is started, meets a fault at a random moment, and is resumed
by the same command, until it is complete. Then its hashes are compared, and the next run begins;
runs alternate between `runner=hts` and `runner=serial`. After every fault, no process may be left.

The folder holds `log.jsonl` with a line for each fault, and `figures.json`. The same command goes
on where the script was stopped. Fault number i depends on `--seed` and i only, but the moment at
which it hits a run depends on the machine. Mounting (full and read-only folders) needs root rights;
without them, these faults are left out and the figures say so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.fault.processes import WORDS, Run
from tests.harness import Fingerprint, command

TOTAL_STEPS = 12_800
EVALUATION = ("eval.interval=1280", "eval.episodes=2")
RUNNERS = ("hts", "serial")
Fault = Callable[[Run, random.Random], None]


def words_of(runner: str) -> list[str]:
    """Returns the words of the run's command."""
    return [*WORDS, *EVALUATION, f"total_steps={TOTAL_STEPS}", f"runner={runner}", "resume=auto"]


def start(folder: Path, runner: str, is_sweep: bool = False) -> Run:
    """Starts or resumes the run in `folder / "run"`, as a single run or as the job of a sweep."""
    words = words_of(runner)
    if is_sweep:
        words = ["-m", *(word for word in words if not word.startswith("hydra."))]
        words += ["launcher=local", "hydra.sweep.dir=.", "hydra.sweep.subdir=run"]
    return Run(folder, command_line=command("train", *words))


def send(number: signal.Signals) -> Fault:
    """Returns the fault of a signal to the main process."""
    return lambda run, rng: run.signal(number)


def pause(run: Run, rng: random.Random) -> None:
    """Stops the main process for up to five seconds."""
    run.signal(signal.SIGSTOP)
    time.sleep(rng.uniform(0.1, 5))
    run.signal(signal.SIGCONT)


def kill_evaluator(run: Run, rng: random.Random) -> None:
    """Kills the worker that started last."""
    # The evaluator starts after all other workers.
    for process in run.workers()[-1:]:
        with suppress(psutil.Error):
            process.kill()


def delete_folder(run: Run, rng: random.Random) -> None:
    """Deletes the folder of the run while the run writes to it."""
    while run.folder.exists():
        shutil.rmtree(run.folder, ignore_errors=True)


def make_read_only(run: Run, rng: random.Random) -> None:
    """Mounts the folder of the run read-only."""
    if not run.folder.is_dir():
        return
    subprocess.run(["mount", "--bind", str(run.folder), str(run.folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(run.folder)], check=True)


def fill(run: Run, rng: random.Random) -> None:
    """Fills the file system on which the run's folder has been mounted."""
    with suppress(OSError), open(run.folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


FAULTS: dict[str, Fault] = {
    "SIGKILL": send(signal.SIGKILL),
    "SIGTERM": send(signal.SIGTERM),
    "SIGHUP": send(signal.SIGHUP),
    "SIGSTOP": pause,
    "full folder": fill,
    "read-only folder": make_read_only,
    "deleted folder": delete_folder,
    "killed evaluator": kill_evaluator,
    "killed launcher": send(signal.SIGKILL),
}
MOUNTS = ("full folder", "read-only folder")


def is_mounted(folder: Path) -> bool:
    """Returns True if something is mounted on a folder, also a folder of the same file system."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return str(folder) in (line.split()[4] for line in mounts)


def apply(name: str, rng: random.Random, folder: Path, runner: str) -> dict[str, Any]:
    """Starts the run, lets the fault happen and waits for the end; returns what was found."""
    run_dir = folder / "run"
    is_full = name == "full folder"
    if is_full:
        # The run moves to a small file system, and back afterwards.
        shutil.rmtree(folder / "kept", ignore_errors=True)
        run_dir.rename(folder / "kept") if run_dir.exists() else (folder / "kept").mkdir()
        run_dir.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(run_dir)]
        subprocess.run(mount, check=True)
        shutil.copytree(folder / "kept", run_dir, dirs_exist_ok=True)
    run = start(folder, runner, is_sweep=name == "killed launcher")
    time.sleep(rng.uniform(1, 15))
    hit_at = run.env_steps
    was_running = run.process.poll() is None
    if was_running:
        FAULTS[name](run, rng)
    if name in ("read-only folder", "full folder", "killed evaluator", "SIGSTOP"):
        time.sleep(rng.uniform(0.5, 4))
        if name in MOUNTS and run.process.poll() is None:
            run.signal(signal.SIGTERM)
    status = run.wait(600)
    left = [text for text in run.leftovers(60) if not text.startswith("filler")]
    run.end()
    if name == "read-only folder" and is_mounted(run_dir):
        subprocess.run(["umount", str(run_dir)], check=True)
    if is_full:
        (run_dir / "filler").unlink(missing_ok=True)
        shutil.rmtree(folder / "kept")
        shutil.copytree(run_dir, folder / "kept")
        subprocess.run(["umount", str(run_dir)], check=True)
        run_dir.rmdir()
        (folder / "kept").rename(run_dir)
    has_traceback = "Traceback" in run.stderr
    return {
        "status": status,
        "hit_at": hit_at,
        "was_running": was_running,
        "left": left,
        "traceback": run.stderr[-2000:] if has_traceback else "",
    }


def hashes(run: Run) -> list[str]:
    """Returns the hashes of a complete run."""
    found: Fingerprint = run.fingerprint()
    return [found.params, found.optimizer, found.rollouts]


def reference(folder: Path, runner: str) -> list[str]:
    """Returns the hashes of the uninterrupted run, which is made once."""
    path = folder / f"reference_{runner}.json"
    if not path.exists():
        own = folder / f"reference_{runner}"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        run = start(own, runner)
        assert run.wait(1200) == 0, run.stderr
        path.write_text(json.dumps(hashes(run)))
    found: list[str] = json.loads(path.read_text())
    return found


def compare_if_complete(folder: Path, expected: list[str]) -> str | None:
    """Compares and deletes a complete run; returns `equal`, `different`, or None if incomplete."""
    summary = folder / "run" / "summary.json"
    if not summary.exists() or json.loads(summary.read_text())["env_steps"] < TOTAL_STEPS:
        return None
    stored = json.loads(summary.read_text())
    found = [stored[f"{name}_sha256"] for name in ("params", "optimizer", "rollouts")]
    if found != expected:
        folder.rename(folder.with_name(f"different_{time.time_ns()}"))
        return "different"
    shutil.rmtree(folder)
    return "equal"


def figures(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the numbers of faults by kind, of complete runs, and of failures."""
    return {
        "faults": len(entries),
        "by_kind": Counter(entry["fault"] for entry in entries),
        "hit_a_running_process": sum(entry["was_running"] for entry in entries),
        "complete_runs": Counter(entry["result"] for entry in entries if entry["result"]),
        "with_leftovers": sum(bool(entry["left"]) for entry in entries),
        "with_traceback": sum(bool(entry["traceback"]) for entry in entries),
        "left_out": [] if os.geteuid() == 0 else list(MOUNTS),
    }


def main() -> int:
    """Makes the faults that are left to make; returns 1 if something was not as promised."""
    parser = argparse.ArgumentParser(description="Makes random faults in resumed runs.")
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/random_faults"))
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    entries = [json.loads(line) for line in lines]
    names = [name for name in FAULTS if os.geteuid() == 0 or name not in MOUNTS]
    for number in range(len(entries), args.faults):
        rng = random.Random(f"{args.seed} {number}")
        # A run is complete after several faults; the number of complete runs chooses the runner.
        runner = RUNNERS[sum(bool(entry["result"]) for entry in entries) % len(RUNNERS)]
        expected = reference(folder, runner)
        own = folder / f"run_{runner}"
        own.mkdir(exist_ok=True)
        name = rng.choice(names)
        entry = {"number": number, "fault": name, "runner": runner}
        entry |= apply(name, rng, own, runner)
        entry["result"] = compare_if_complete(own, expected)
        entries.append(entry)
        with open(log, "a") as file:
            file.write(json.dumps(entry) + "\n")
        (folder / "figures.json").write_text(json.dumps(figures(entries), indent=2) + "\n")
        print(json.dumps(entry)[:200], file=sys.stderr, flush=True)
    bad = figures(entries)
    is_good = not (bad["complete_runs"].get("different") or bad["with_leftovers"])
    return 0 if is_good and not bad["with_traceback"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
