"""Tests of metric lines and of the summary, also across resumes."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from htsrl_cli.checkpoints.state import State
from htsrl_cli.storage.slot import Episode
from htsrl_cli.tracking.final_metric import FinalMetric
from tests import sections
from tests.unit.run_logs import (
    CONFIG,
    STEPS,
    Clock,
    deterministic,
    feed,
    fill_disk,
    lines,
    open_log,
    play,
    scalars,
)


def test_a_line_is_written_where_a_multiple_of_the_interval_is_crossed(tmp_path: Path) -> None:
    play(tmp_path, 11)
    # Barriers: 64, 128, ... 704. Multiples of 200 are crossed at 256, 448 and 640; 704 is last.
    assert [line["env_steps"] for line in lines(tmp_path)] == [256, 448, 640, 704]


def test_a_rollout_that_crosses_several_multiples_writes_one_line(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.rollout(1000, {"a": 1.0}, [], {})
        log.rollout(2000, {"a": 3.0}, [], {})
        log.finish()
    assert [(line["env_steps"], line["a"]) for line in lines(tmp_path)] == [(1000, 1), (2000, 3)]


def test_means_and_episode_statistics_by_hand(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.rollout(100, {"b": 1.0}, [Episode(3.0, 0.5, 10)], {})
        log.rollout(150, {"b": 2.0, "a": 8.0}, [], {})
        log.rollout(200, {"b": 6.0}, [Episode(-1.0, 1.0, 30), Episode(4.0, 3.0, 50)], {})
        log.rollout(400, {"b": 7.0}, [Episode(0.0, 0.0, 1)], {})
        log.rollout(600, {}, [], {})
    first, second, third = lines(tmp_path)
    assert [name for name in first if not name.startswith("time/")] == [
        "env_steps",
        "episode/count",
        "episode/return_mean",
        "episode/return_min",
        "episode/return_max",
        "episode/training_return_mean",
        "episode/training_return_min",
        "episode/training_return_max",
        "episode/length_mean",
        "episode/length_min",
        "episode/length_max",
        "episode/return_mean_100",
        "episode/total",
        "a",
        "b",
    ]
    values = [value for name, value in first.items() if not name.startswith("time/")]
    assert values == [200, 3, 2.0, -1.0, 4.0, 1.5, 0.5, 3.0, 30.0, 10, 50, 2.0, 3, 8.0, 3.0]
    assert (second["episode/return_mean"], second["episode/return_mean_100"]) == (0.0, 1.5)
    assert (second["episode/total"], second["b"]) == (4, 7.0)
    assert "a" not in second
    assert (third["episode/count"], third["episode/return_mean"]) == (0, None)
    assert third["episode/return_mean_100"] == 1.5


def test_the_metric_covers_the_last_hundred_episodes(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        assert log.metric is None
        log.rollout(1, {}, [Episode(float(k), 0.0, 1) for k in range(60)], {})
        assert log.metric == np.arange(60).mean()
        log.rollout(2, {}, [Episode(float(k), 0.0, 1) for k in range(60, 150)], {})
        assert log.metric == np.arange(50, 150).mean()
        assert log.num_episodes == 150


def test_wall_clock_figures_by_hand(tmp_path: Path) -> None:
    clock = Clock()
    with open_log(tmp_path, clock=clock) as log:
        clock.now += 4
        log.rollout(200, {}, [], {"learner_busy": 1.0, "actors_busy": 3.0})
        clock.now += 1
        log.rollout(300, {}, [], {"learner_busy": 0.25})
        clock.now += 1
        log.rollout(400, {}, [], {"learner_busy": 0.25})
        assert log.seconds == 6
        state = log.state()
    first, second = lines(tmp_path)
    assert first["time/env_steps_per_second"] == 50
    assert (first["time/learner_busy"], first["time/actors_busy"]) == (0.25, 0.75)
    assert second["time/env_steps_per_second"] == 100
    assert second["time/env_steps_per_second_since_start"] == 400 / 6
    assert (second["time/learner_busy"], second["time/seconds"]) == (0.25, 6)
    assert "time/actors_busy" not in second
    clock = Clock()
    with open_log(tmp_path, 400, clock=clock) as log:
        log.load_state(state)
        clock.now += 2
        log.rollout(600, {}, [], {})
    last = lines(tmp_path)[-1]
    assert last["time/seconds"] == 8, "time counts over all processes of a run"
    assert last["time/env_steps_per_second_since_start"] == 100, "speed is of this process"


@pytest.mark.parametrize("stop", range(1, 12))
@pytest.mark.parametrize("further", [0, 1, 5])
def test_a_resumed_run_writes_identical_lines(tmp_path: Path, stop: int, further: int) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    play(whole, 12)
    with open_log(resumed) as log:
        for j in range(stop):
            feed(log, j)
        assert log.state().arrays == {}
        state = json.dumps(log.state().values)
        for j in range(stop, min(stop + further, 12)):  # after the checkpoint, then killed
            feed(log, j)
    with open(resumed / "metrics.jsonl", "ab") as file:
        file.write(b'{"env_steps": 12, "half a li')
    with open_log(resumed, stop * STEPS) as log:
        log.load_state(State({}, json.loads(state)))
        assert (
            json.loads(json.dumps(log.state().values)).items()
            >= {
                name: value for name, value in json.loads(state).items() if name != "seconds"
            }.items()
        )
        for j in range(stop, 12):
            feed(log, j)
        log.finish()
    assert deterministic(resumed) == deterministic(whole)


def test_extending_a_finished_run_drops_its_final_partial_line(tmp_path: Path) -> None:
    whole, extended = tmp_path / "whole", tmp_path / "extended"
    whole.mkdir()
    extended.mkdir()
    play(whole, 12)
    with open_log(extended) as log:
        for j in range(5):
            feed(log, j)
        state = log.state()
        log.finish()
    assert lines(extended)[-1]["env_steps"] == 5 * STEPS
    with open_log(extended, 5 * STEPS) as log:
        log.load_state(state)
        for j in range(5, 12):
            feed(log, j)
        log.finish()
    assert deterministic(extended) == deterministic(whole)


def test_a_process_that_fails_while_starting_changes_nothing(tmp_path: Path) -> None:
    play(tmp_path, 12)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with open_log(tmp_path, 64, config=replace(CONFIG, tensorboard=True)):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resuming_a_finished_run_changes_no_line(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for j in range(5):
            feed(log, j)
        state = log.state()
        log.finish()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    evaluation = sections.evaluation(interval=STEPS)
    with open_log(tmp_path, 5 * STEPS, evaluation=evaluation) as log:
        log.load_state(state)
        log.finish()
        log.evaluation(5 * STEPS, 1.0, [Episode(1.0, 1.0, 1)])
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)
    assert len(lines(tmp_path)) == len(before.splitlines()) + 1


def test_the_clock_stops_with_the_training(tmp_path: Path) -> None:
    clock = Clock()
    with open_log(tmp_path, clock=clock) as log:
        feed(log, 0)
        clock.now += 3.0
        log.finish()
        clock.now += 100.0
        assert log.seconds == 3.0


def test_finishing_without_anything_new_writes_no_line(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.finish()
        log.rollout(200, {}, [], {})
        log.finish()
    assert len(lines(tmp_path)) == 1


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.rollout(200, {"a": math.nan, "b": math.inf, "c": 0.1 + 0.2}, [], {})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert '"a": null, "b": null, "c": 0.30000000000000004' in text


def test_final_metric_by_hand() -> None:
    assert FinalMetric([]).value is None
    final = FinalMetric([4.5, 100.0])
    for k in range(1, 13):
        final.add(1000 * k, 0.5 * k, float(k), episodes=1 if k == 12 else 2)
    # The last ten policies, 3 to 12; policy 12 has one game instead of two.
    assert final.value == (2 * sum(range(3, 12)) + 12) / 19
    # (1 + ... + 8) / 8 = 4.5.
    assert final.reached == {4.5: (8000, 4.0), 100.0: None}


def test_evaluated_policies_survive_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # See test_resuming_purges_later_events.
    seconds = iter(range(2_000_000_000, 2_100_000_000))
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time.time", seconds.__next__)
    config = replace(CONFIG, tensorboard=True)
    evaluation = sections.evaluation(interval=STEPS, targets=(3.5,))
    episodes = {j: [Episode(float(j), 0.0, 5), Episode(j + 1.0, 0.0, 7)] for j in range(1, 9)}
    with open_log(tmp_path, config=config, evaluation=evaluation) as log:
        assert log.metric is None
        for j in range(8):
            feed(log, j)
            if j == 4:
                state = log.state()
        for j in (1, 3, 4, 5, 6):
            log.evaluation(j * STEPS, float(j), episodes[j])
        assert log.final_metric_at(4 * STEPS) == (1.5 + 3.5 + 4.5) / 3
    before = lines(tmp_path)
    with open_log(tmp_path, 5 * STEPS, config=config, evaluation=evaluation) as log:
        log.load_state(state)
        # Up to 320 env steps, although the last training line is at 256.
        assert list(log.evaluated) == [STEPS, 3 * STEPS, 4 * STEPS, 5 * STEPS]
        assert log.metric == log.final_metric.value == (1.5 + 3.5 + 4.5 + 5.5) / 4
        feed(log, 5)
        log.evaluation(6 * STEPS, 6.0, episodes[6])
    assert lines(tmp_path)[1:] == [line for line in before if "eval/return_mean" in line]
    last = lines(tmp_path)[-1]
    assert (last["eval/env_steps_to_3.5"], last["time/seconds_to_3.5"]) == (5 * STEPS, 5.0)
    read = scalars(tmp_path)["eval/return_mean"]
    assert read == [(j * STEPS, j + 0.5) for j in (1, 3, 4, 5, 6)]


def test_a_full_disk_loses_the_line_but_neither_the_file_nor_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class FullDisk(io.FileIO):
        def write(self, content: Any) -> int:
            return super().write(content[:7])  # the disk takes these bytes before it is full

    with open_log(tmp_path) as log:
        log.rollout(200, {"a": 1.0}, [], {})
        outputs = log._outputs
        assert outputs is not None
        with monkeypatch.context() as context:
            context.setattr(outputs._lines, "_file", FullDisk(tmp_path / "metrics.jsonl", "ab"))
            log.rollout(400, {"a": 2.0}, [], {})
            outputs._lines.close()
        log.rollout(600, {"a": 3.0}, [], {})
    assert [line["env_steps"] for line in lines(tmp_path)] == [200, 600]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    message = "metrics.jsonl: No space left on device; no line was written at 400 env steps"
    assert record.getMessage() == message


def test_scores_wait_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = sections.evaluation(interval=STEPS, targets=(1.0, 2.0))
    policies = [(j * STEPS, 0.5 * j, [Episode(float(j), 0.0, 7)]) for j in (1, 2)]
    expected, late = tmp_path / "expected", tmp_path / "late"
    for folder in (expected, late):
        folder.mkdir()
    with open_log(expected, evaluation=evaluation) as log:
        assert [log.evaluation(*policy) for policy in policies] == [True, True]
    with open_log(late, evaluation=evaluation) as log:
        assert log.evaluation(*policies[0])
        with monkeypatch.context() as patch:
            fill_disk(patch, lambda line: True)
            assert not log.evaluation(*policies[1])
        assert (list(log.evaluated), log.metric) == ([STEPS], 1.0)
        assert log.evaluation(*policies[1])
    assert lines(late) == lines(expected)


def test_the_summary_is_replaced_whole(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.write_summary({"env_steps": 1, "metric": None})
    log.write_summary({"env_steps": 2, "metric": 0.1})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"env_steps": 2, "metric": 0.1}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
