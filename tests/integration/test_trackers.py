"""Weights & Biases and MLflow in their offline modes: tests read back what they stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness import command, environment
from tests.integration.test_cli import TINY

WORDS = (
    *TINY,
    "env=synthetic/sleep",
    "env.episode_length=10",
    "log.interval=64",
    "eval.interval=128",
    "eval.episodes=2",
    "hydra.run.dir=run",
)
# MLflow stores runs in a folder only if this is set, too.
FILE_STORE = {"MLFLOW_ALLOW_FILE_STORE": "true"}
# A program that prints the records of a W&B offline run as JSON lines. The file is a LevelDB log:
# blocks of 32 KiB with pieces of records, each after a checksum, its length and its kind (1 is a
# whole record, 4 the last piece).
READ_WANDB = """
import json, struct, sys
from wandb.proto import wandb_internal_pb2

def records(data):
    place, record = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""

for data in records(open(sys.argv[1], "rb").read()):
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    kind = record.WhichOneof("record_type")
    if kind == "history":
        items = {item.key or ".".join(item.nested_key): json.loads(item.value_json)
                 for item in record.history.item}
        print(json.dumps({"history": items}))
    elif kind == "run":
        config = {u.key: json.loads(u.value_json) for u in record.run.config.update}
        print(json.dumps({"run": record.run.run_id, "project": record.run.project,
                          "config": config}))
    elif kind == "exit":
        print(json.dumps({"exit": record.exit.exit_code}))
"""


def train(cwd: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("train", *words),
        cwd=cwd,
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def read_wandb(path: Path) -> list[dict[str, Any]]:
    command_line = [sys.executable, "-W", "ignore", "-c", READ_WANDB, str(path)]
    read = subprocess.run(command_line, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in read.stdout.splitlines()]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def figures(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if value is not None}


@pytest.mark.slow
def test_wandb(tmp_path: Path) -> None:
    run = train(tmp_path, *WORDS, "log.wandb=pole", "total_steps=320", WANDB_MODE="offline")
    assert run.returncode == 0, run.stderr
    again = train(tmp_path, "resume=run", "total_steps=512", WANDB_MODE="offline")
    assert again.returncode == 0, again.stderr
    stored = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(stored) == 2
    records = [record for path in stored for record in read_wandb(path)]
    runs = [record for record in records if "run" in record]
    assert len({record["run"] for record in runs}) == 1
    assert {record["project"] for record in runs} == {"pole"}
    assert runs[0]["config"]["algo"]["name"] == "ppo"
    assert [record["exit"] for record in records if "exit" in record] == [0, 0]
    logged = [
        {name: value for name, value in record["history"].items() if name[0] != "_"}
        for record in records
        if "history" in record
    ]
    for line in lines(tmp_path / "run"):
        assert figures(line) in logged


@pytest.mark.slow
def test_mlflow(tmp_path: Path) -> None:
    variables = {"MLFLOW_TRACKING_URI": f"file://{tmp_path}/tracked"} | FILE_STORE
    run = train(tmp_path, *WORDS, "log.mlflow=pole", "total_steps=320", **variables)
    assert run.returncode == 0, run.stderr
    again = train(tmp_path, "resume=run", "total_steps=512", **variables)
    assert again.returncode == 0, again.stderr
    script = """
import json
from mlflow.tracking import MlflowClient
client = MlflowClient()
experiment = client.get_experiment_by_name("pole")
(run,) = client.search_runs([experiment.experiment_id])
history = {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
           for name in run.data.metrics}
print(json.dumps({"status": run.info.status, "params": run.data.params, "history": history}))
"""
    read = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    stored = json.loads(read.stdout)
    assert stored["status"] == "FINISHED"
    assert stored["params"]["algo.name"] == "ppo"
    for line in lines(tmp_path / "run"):
        for name, value in figures(line).items():
            if name != "env_steps":
                assert [line["env_steps"], pytest.approx(value)] in stored["history"][name]


def test_two_jobs_make_the_same_mlflow_experiment(tmp_path: Path) -> None:
    """Simulates another job that creates the experiment after this one has looked for it."""
    script = """
import sys
from pathlib import Path
from mlflow.tracking import MlflowClient
from htsrl_cli.tracking.trackers import MlflowTracker

make = MlflowClient.create_experiment

def make_second(client, name):
    other = make(client, name)
    client.create_run(other)
    return make(client, name)

MlflowClient.create_experiment = make_second
MlflowTracker("pole", Path(sys.argv[1]), {}).close(True)
client = MlflowClient()
(experiment,) = [e for e in client.search_experiments() if e.name == "pole"]
print(*(run.info.status for run in client.search_runs([experiment.experiment_id])))
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)],
        env=environment() | {"MLFLOW_TRACKING_URI": f"file://{tmp_path}/tracked"} | FILE_STORE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.split()) == ["FINISHED", "RUNNING"]


def test_a_tracker_that_fails_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("")
    run = train(
        tmp_path,
        *WORDS,
        "log.mlflow=pole",
        "total_steps=320",
        MLFLOW_TRACKING_URI=f"file://{tmp_path}/in_the_way",
        **FILE_STORE,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("nothing more is sent to it until the run is resumed") == 1
    assert len(lines(tmp_path / "run")) == 5 + 2


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['wandb'] = None; from htsrl_cli.cli.main import main; main"
    run = subprocess.run(
        [sys.executable, "-c", f"{hidden}(['train', *{WORDS!r}, 'log.wandb=pole'])"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr == (
        "htsrl: error: log.wandb=pole: needs the package wandb: pip install 'htsrl[wandb]'\n"
    )
    assert list(tmp_path.iterdir()) == []
