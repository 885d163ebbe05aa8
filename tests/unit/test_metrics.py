"""Tests of metric lines, TensorBoard events, summary and progress, also across resumes."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from htsrl_cli.checkpoints.state import State
from htsrl_cli.storage.slot import Episode
from htsrl_cli.tracking import lines as line_file
from htsrl_cli.tracking.final_metric import FinalMetric
from htsrl_cli.tracking.lines import LineFile
from htsrl_cli.tracking.progress import Status, TerminalBar
from htsrl_cli.tracking.run_log import RunLog
from tests import sections

STEPS = 64  # of a rollout
CONFIG = sections.log(interval=200, tensorboard=False)


class Clock:
    """A clock that is set by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def open_log(run_dir: Path, env_steps: int = 0, **kwargs: Any) -> RunLog:
    config = kwargs.pop("config", CONFIG)
    return RunLog(run_dir, config, {"algo": {"lr": 0.1}}, 10_000, env_steps, **kwargs)


def feed(log: RunLog, j: int) -> None:
    """Adds rollout j, whose values depend on j alone."""
    rng = np.random.default_rng(j)
    scalars = {"loss/policy": float(rng.standard_normal()), "learning_rate": 1 / (j + 3)}
    if j > 0:  # the first rollout has no update
        scalars["loss/value"] = float(rng.random())
    episodes = [
        Episode(rng.standard_normal(), rng.standard_normal(), int(rng.integers(1, 99)))
        for _ in range(rng.integers(4))
    ]
    log.rollout((j + 1) * STEPS, scalars, episodes, {"learner_busy": 0.1})


def lines(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def deterministic(run_dir: Path) -> list[str]:
    """Returns each line's bytes without the wall-clock values."""
    return [
        json.dumps({name: value for name, value in line.items() if not name.startswith("time/")})
        for line in lines(run_dir)
    ]


def play(run_dir: Path, num_rollouts: int) -> None:
    with open_log(run_dir) as log:
        for j in range(num_rollouts):
            feed(log, j)
        log.finish()


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


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", b""),
        (b'{"env_steps": 1}\n{"env_steps": 2}\n', b'{"env_steps": 1}\n{"env_steps": 2}\n'),
        (b'{"env_steps": 1}\n{"env_steps": 3}\n', b'{"env_steps": 1}\n'),
        (b'{"env_steps": 1}\n{"env_steps": 2}', b'{"env_steps": 1}\n'),
        (b'{"env_steps": 1}\n{"env_st', b'{"env_steps": 1}\n'),
        (b'{"env_steps": 1}\n\0\0\0\0\n', b'{"env_steps": 1}\n'),
        (b'{"env_steps": 1}\n[]\n', b'{"env_steps": 1}\n'),
        (b'{"env_steps": 3}\n', b""),
    ],
)
def test_cutting_back(tmp_path: Path, content: bytes, kept: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    LineFile(path, lambda line: line["env_steps"] <= 2).close()
    assert path.read_bytes() == kept


def test_failing_to_cut_back_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"env_steps": 3}\n{"env_steps": 1}\n')
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output error"):
        LineFile(path, lambda line: line["env_steps"] < 2)
    assert path.read_bytes() == before


def test_cutting_back_keeps_what_is_to_stay_behind_what_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 3}\n{"a": 2}\n')
    file = LineFile(path, lambda line: line["a"] <= 2)
    file.append({"a": 4.0})
    file.close()
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n{"a": 4.0}\n'


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


def fill_disk(patch: pytest.MonkeyPatch, is_full: Callable[[Any], bool]) -> None:
    """Makes the disk appear full for the lines that `is_full` selects."""
    append = LineFile.append

    def append_if_possible(file: LineFile, line: Any) -> None:
        if is_full(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(file, line)

    patch.setattr(LineFile, "append", append_if_possible)


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


@pytest.mark.parametrize(
    "damage",
    [
        b"no JSON",
        bytes(30),
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        b'{"env_steps": "many"}',
        b'{"env_steps": 64, "eval/return_mean": 1.0}',
        b'{"env_steps": 64, "eval/return_mean": [], "eval/episodes": 1, "time/seconds": 1}',
        b"{" * 100_000,
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_is_skipped_with_a_warning(
    damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = [{"env_steps": 64, "x": 1.0}, {"env_steps": 128, "x": None}]
    texts = [json.dumps(line).encode() for line in whole]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([texts[0], damage, texts[1], b"half"]))
    with caplog.at_level(logging.WARNING):
        assert line_file.read_lines(tmp_path) == whole
    assert "metrics.jsonl: skipped 1 damaged line" in caplog.text
    # A resume removes it from the file.
    LineFile(tmp_path / "metrics.jsonl", lambda line: line["env_steps"] <= 64).close()
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(texts[0] + b"\n")
    RunLog(tmp_path, CONFIG, {}, 10_000, 64, evaluation=sections.evaluation(interval=64))


def test_a_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []

    class Recorded(io.FileIO):
        def write(self, content: Any) -> int:
            writes.append(bytes(content))
            return super().write(content)

    def recorded(path: Path, mode: str, buffering: int = -1) -> Any:
        return Recorded(path, mode) if mode == "ab" else open(path, mode, buffering)

    monkeypatch.setattr(line_file, "open", recorded, raising=False)
    play(tmp_path, 12)
    assert [write.count(b"\n") for write in writes] == [1] * len(lines(tmp_path))
    assert all(write.endswith(b"}\n") for write in writes)


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_event_files_hold_the_same_as_the_lines(tmp_path: Path) -> None:
    with open_log(tmp_path, config=replace(CONFIG, tensorboard=True)) as log:
        for j in range(12):
            feed(log, j)
        # Reads before closing, to see what a killed run leaves.
        read = scalars(tmp_path)
        written = lines(tmp_path)
    tags = {name for line in written for name in line} - {"env_steps"}
    assert read.keys() == tags
    for tag in tags:
        expected = [
            (line["env_steps"], float(np.float32(line[tag])))
            for line in written
            if line.get(tag) is not None
        ]
        assert read[tag] == expected, tag


def test_event_files_hold_policy_lags_as_histograms(tmp_path: Path) -> None:
    config = replace(CONFIG, tensorboard=True)
    with open_log(tmp_path, config=config) as log:
        log.rollout(100, {}, [], {}, lags={0: 3, 2: 1})
        state = json.loads(json.dumps(log.state().values))
    with open_log(tmp_path, 100, config=config) as log:
        log.load_state(State({}, state))
        log.rollout(200, {}, [], {}, lags={2: 4, 5: 6})
        log.rollout(400, {}, [], {}, lags={1: 7})
        log.rollout(600, {}, [], {})
    reader = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    events = reader.Histograms("learner/lags")
    assert [event.step for event in events] == [200, 400]
    first = events[0].histogram_value
    assert (first.min, first.max, first.num, first.sum) == (0, 5, 14, 40)
    assert first.bucket_limit == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert first.bucket == [3, 0, 5, 0, 0, 6]
    assert events[1].histogram_value.bucket == [0, 7]


def test_event_files_hold_the_hyperparameters_in_the_same_folder(tmp_path: Path) -> None:
    with open_log(tmp_path, config=replace(CONFIG, tensorboard=True)) as log:
        feed(log, 0)
    events = EventAccumulator(str(tmp_path)).Reload()
    (text,) = events.Tensors("hyperparameters/text_summary")
    assert b"|algo.lr|0.1|" in text.tensor_proto.string_val[0]
    assert "_hparams_/experiment" in events.summary_metadata
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("tensorboard", [False, True], ids=["off", "on"])
def test_event_files_hold_hyperparameters_and_layout_once(
    tmp_path: Path, tensorboard: bool
) -> None:
    # Also in a run whose first processes wrote no event files.
    with open_log(tmp_path, config=replace(CONFIG, tensorboard=tensorboard)) as log:
        for j in range(5):
            feed(log, j)
        state = log.state()
    for _ in range(2):
        with open_log(tmp_path, 5 * STEPS, config=replace(CONFIG, tensorboard=True)) as log:
            log.load_state(state)
            feed(log, 5)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Tensors("hyperparameters/text_summary")) == 1
    assert len(events.Tensors("custom_scalars__config__")) == 1
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_resuming_purges_later_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorBoard reads files by name; names begin with the second of their creation.
    seconds = iter(range(2_000_000_000, 2_100_000_000))
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time.time", seconds.__next__)
    config = replace(CONFIG, tensorboard=True)
    with open_log(tmp_path, config=config) as log:
        for j in range(12):
            feed(log, j)
            if j == 4:
                state = log.state()
        log.finish()
    first = scalars(tmp_path)["loss/policy"]
    assert [step for step, _ in first] == [256, 448, 640, 768]
    with open_log(tmp_path, 5 * STEPS, config=config) as log:
        log.load_state(state)
        for j in range(5, 8):
            feed(log, j)
    assert scalars(tmp_path)["loss/policy"] == first[:2]
    assert [line["env_steps"] for line in lines(tmp_path)] == [256, 448]


def test_tensorboard_failing_is_reported_once_and_the_lines_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_log(tmp_path, config=replace(CONFIG, tensorboard=True)) as log:
        log.rollout(200, {}, [], {})
        outputs = log._outputs
        assert outputs is not None
        events = outputs._trackers["TensorBoard"]

        def fail(line: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        events.write = fail  # type: ignore[method-assign]
        log.rollout(400, {}, [], {})
        log.rollout(600, {}, [], {})
        events.close(is_complete=False)
    assert [line["env_steps"] for line in lines(tmp_path)] == [200, 400, 600]
    assert caplog.text.count("No space left on device; nothing more is sent to it until") == 1


def test_the_summary_is_replaced_whole(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.write_summary({"env_steps": 1, "metric": None})
    log.write_summary({"env_steps": 2, "metric": 0.1})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"env_steps": 2, "metric": 0.1}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_status_in_words() -> None:
    steps = "20,480/10,000,000 env steps, 712/s"
    times = "3:53:28 left, 0:00:29 so far"
    status = Status(20_480, 10_000_000, 712.4, 3.456789, 28.7)
    assert str(status) == f"{steps}, return 3.457, {times}"
    evaluated = Status(20_480, 10_000_000, 712.4, 3.456789, 28.7, 5.4321)
    assert str(evaluated) == f"{steps}, return 3.457, evaluated 5.432, {times}"
    assert str(Status(0, 10, 0.0, None, 0.0)) == "0/10 env steps, 0/s, 0:00:00 so far"


def test_plain_progress_is_one_logged_line_for_each_line_of_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        play(tmp_path, 11)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(lines(tmp_path))
    assert messages[0].startswith("256/10,000 env steps, ")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_restores_the_terminal_when_the_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def run() -> None:
        with open_log(tmp_path) as log:
            feed(log, 0)
            assert "\x1b[?25l" in terminal.getvalue(), "the cursor is hidden while it runs"
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        run()
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")
    assert "64/10,000 env steps" in terminal.getvalue()
    assert sys.stderr is terminal


def test_the_bar_shows_the_latest_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    bar = TerminalBar(terminal)
    bar.barrier(Status(1_000, 4_000, 500.0, 1.5, 2.0))
    bar.barrier(Status(2_000, 4_000, 500.0, 2.5, 4.0))
    bar.close()
    *_, last = terminal.getvalue().split("\x1b[2K")
    assert "50%" in last
    assert "2,000/4,000 env steps, 500/s, return 2.5, 0:00:04 left, 0:00:04 so far" in last


def test_a_narrow_terminal_keeps_the_bar_and_the_percentage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    bar = TerminalBar(terminal)
    bar.barrier(Status(2_000_000, 4_000_000, 500.0, 2.5, 4000.0))
    bar.close()
    *_, last = terminal.getvalue().split("\x1b[2K")
    assert "━" * 10 in last
    assert "50%" in last
    assert "2,000,000/4,000,000 env" in last
    assert "…" in last


def test_log_messages_appear_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    handler = logging.StreamHandler(terminal)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    bar = TerminalBar(terminal)
    bar.barrier(Status(1_000, 4_000, 500.0, 1.5, 2.0))
    logging.getLogger("htsrl_cli.test").warning("a message")
    bar.close()
    before, _, after = terminal.getvalue().rpartition("a message")
    assert before.endswith("\x1b[2K"), "the bar is erased before the message"
    assert after.startswith("\n")
    assert "25%" in after, "the bar is drawn again below the message"
    assert handler.stream is terminal
