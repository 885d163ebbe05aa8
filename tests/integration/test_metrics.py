"""Metrics of whole runs: scores on a full disk, TensorBoard tags, kills while writing."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from htsrl_cli.checkpoints.store import find_checkpoint
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import RunError
from tests import sections
from tests.harness import STEPS_PER_ROLLOUT, run, small_config
from tests.unit.run_logs import CONFIG, feed, fill_disk, lines, open_log, play


def evaluated_config() -> TrainConfig:
    config = small_config("terminating", "a2c")
    evaluation = sections.evaluation(interval=STEPS_PER_ROLLOUT, episodes=2)
    return replace(config, eval=evaluation, total_steps=12 * STEPS_PER_ROLLOUT)


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    found = [line for line in lines(run_dir) if "eval/return_mean" in line]
    return [{name: line[name] for name in line if name[:5] != "time/"} for line in found]


def test_scores_without_space_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch, lambda line: line["env_steps"] > 5 * STEPS_PER_ROLLOUT)
        with pytest.raises(RunError, match="scores could not be written"):
            run(evaluated_config(), tmp_path)
    stored = evaluations(tmp_path)
    assert len(stored) <= 5
    run(evaluated_config(), tmp_path, find_checkpoint(tmp_path))
    assert [line["env_steps"] for line in evaluations(tmp_path)] == [
        k * STEPS_PER_ROLLOUT for k in range(1, 13)
    ]


def test_event_files_hold_a_layout_of_tags_that_runs_have(tmp_path: Path) -> None:
    with open_log(tmp_path, config=replace(CONFIG, tensorboard=True)) as log:
        feed(log, 0)
    events = EventAccumulator(str(tmp_path)).Reload()
    (tensor,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(tensor.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Score", "Learning", "Speed"]
    tags = {tag for category in layout.category for c in category.chart for tag in c.multiline.tag}
    config = small_config("terminating", "ppo", runner="serial")
    run(
        replace(config, eval=sections.evaluation(interval=STEPS_PER_ROLLOUT, episodes=1)),
        tmp_path / "run",
    )
    assert tags <= {tag for line in lines(tmp_path / "run") for tag in line}


def test_kills_leave_whole_lines_and_no_temporary_file(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from tests import sections\n"
        "from htsrl_cli.tracking.run_log import RunLog\n"
        "from htsrl_cli.storage.slot import Episode\n"
        "log = RunLog(Path(sys.argv[1]), sections.log(interval=1, tensorboard=False), {}, 10)\n"
        "for j in range(1, 10**9):\n"
        "    log.rollout(j, {'a': j}, [Episode(1.0, 1.0, j)], {})\n"
        "    log.write_summary({'env_steps': j})\n"
        "    print(j, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        while int(child.stdout.readline()) < 50:
            pass
        child.send_signal(signal.SIGKILL)
        confirmed = max([50, *map(int, child.stdout.read().split())])
    assert [line["env_steps"] for line in lines(tmp_path)][:confirmed] == [*range(1, confirmed + 1)]
    names = {path.name for path in tmp_path.iterdir()}
    # A kill while the summary is being replaced leaves its new content under a temporary name.
    assert names - {"summary.json.part"} == {"metrics.jsonl", "summary.json"}
    play(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "summary.json"}
