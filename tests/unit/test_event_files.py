"""Tests of TensorBoard's event files."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from htsrl_cli.checkpoints.state import State
from tests.unit.run_logs import CONFIG, STEPS, feed, lines, open_log, scalars


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
