"""Tests of the file of metric lines: cut back, damaged, and written line by line."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from htsrl_cli.tracking import lines as line_file
from htsrl_cli.tracking.lines import LineFile
from htsrl_cli.tracking.run_log import RunLog
from tests import sections
from tests.unit.run_logs import CONFIG, lines, play


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
