"""Checkpoints with a valid checksum that htsrl did not write: each is refused with one error."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from htsrl_cli.checkpoints.file import MAGIC, Checkpoint, load_checkpoint, save_checkpoint
from htsrl_cli.checkpoints.store import CheckpointStore, find_checkpoint, open_checkpoint
from htsrl_cli.config.plan import RunPlan
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.errors import CheckpointError
from htsrl_cli.evaluation.passes import Passes, stored_config
from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.device import resolve_device
from htsrl_cli.runners.fit import check_fit
from htsrl_cli.runners.wiring import probe
from tests import harness

Content = tuple[dict[str, Any], dict[str, Any]]


class Resumable:
    """A checkpoint of a small run, and the checks that a resume and an evaluation make of a file.

    Args:
        run_dir: folder for the run.
    """

    def __init__(self, run_dir: Path) -> None:
        config = harness.small_config("terminating", "ppo", runner="serial")
        network = replace(config.network, memory="gru", memory_size=5)
        self.config: TrainConfig = replace(config, network=network)
        harness.run(self.config, run_dir)
        # Not the last one: a resume from it has something to do.
        self.path = sorted((run_dir / "checkpoints").iterdir())[0]
        self.checkpoint = load_checkpoint(self.path)
        self._plan, self._spec = RunPlan.of(self.config), probe(self.config.env)
        device = resolve_device("learner.device", "cpu")
        sections = (self.config.network, self.config.algo, self.config.learner)
        sizes = (self._plan.num_updates, self._plan.lag, self.config.seed)
        self._learner = Learner(self._spec, *sections, device, *sizes)

    def check(self, path: Path) -> Checkpoint:
        """Reads a file as a resume and an evaluation do."""
        checkpoint = load_checkpoint(path)
        stored_config(checkpoint, path)
        check_fit(checkpoint, self.config, self._plan, self._spec, self._learner)
        Passes(checkpoint, self.config, self._spec, path, greedy=True)
        return checkpoint

    def content(self) -> Content:
        """Returns copies of the arrays and of the document."""
        arrays = {name: array.copy() for name, array in self.checkpoint.arrays.items()}
        return arrays, json.loads(json.dumps(self.checkpoint.meta))


@pytest.fixture(scope="module")
def resumable(tmp_path_factory: pytest.TempPathFactory) -> Resumable:
    return Resumable(tmp_path_factory.mktemp("run"))


def framed(payload: bytes) -> bytes:
    """Returns a file with the right checksum for a payload."""
    frame = zstandard.compress(payload)
    digest = hashlib.sha256(frame).digest()
    return struct.pack("<8sIQ32s", MAGIC, 3, len(frame), digest) + frame


def with_meta(text: str) -> bytes:
    """Returns a file without arrays whose document is `text`."""
    head = json.dumps({"__metadata__": {"meta": text}}).encode()
    return framed(struct.pack("<Q", len(head)) + head)


def set_value(*keys: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Returns a function that sets a value of the document, or deletes it if `value` is `...`."""

    def change(arrays: dict[str, Any], meta: dict[str, Any]) -> None:
        *path, last = keys
        for key in path:
            meta = meta[key]
        if value is ...:
            del meta[last]
        else:
            meta[last] = value

    return change


def set_array(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Returns a function that replaces an array by `value(array)`, or deletes it for `...`."""

    def change(arrays: dict[str, Any], meta: dict[str, Any]) -> None:
        (found,) = [n for n in arrays if n == name or n.startswith(name)][:1]
        if value is ...:
            del arrays[found]
        else:
            arrays[found] = value(arrays[found])

    return change


def _with_nan(array: Any) -> Any:
    array.flat[0] = np.nan
    return array


NESTED = json.loads("[" * 100 + "]" * 100)
CHANGES = {
    **{
        f"{'.'.join(keys)}={value!r:.20}": set_value(*keys, value=value)
        for keys in (
            ("interval",),
            ("env_steps",),
            ("env_spec",),
            ("config",),
            ("config", "actors"),
            ("config", "algo", "name"),
            ("parts",),
            ("parts", "log"),
            ("parts", "log", "sums"),
            ("parts", "log", "recent"),
            ("parts", "learner", "num_updates"),
            ("parts", "envs", "num_episodes"),
        )
        for value in (..., None, [1], "x", -1, 10**30, {"a": 1}, NESTED)
        # Each of these is a valid value, or is tested below.
        if (keys[-1], value) not in (("interval", ...), ("recent", [1]))
    },
    "interval missing": set_value("interval", value=...),
    "interval too low": set_value("interval", value=1),
    "other episodes": set_value("parts", "envs", "num_episodes", value=[1, 2]),
    "no digest": set_value("parts", "rollouts", "sha256", value="zz"),
    "is_exact": set_value("is_exact", value="yes"),
    **{
        f"{name} {how}": set_array(name, change)
        for name in (
            *("envs/obs", "envs/memories", "envs/3"),
            *("slot/obs", "slot/memories", "slot/rewards", "learner/params/"),
        )
        for how, change in {
            "missing": ...,
            "float64": lambda array: array.astype(np.float64),
            "longer": lambda array: np.concatenate([array, array])[..., None],
            "scalar": lambda array: np.array(0, array.dtype),
        }.items()
    },
    "NaN parameter": set_array("learner/params/", _with_nan),
    "NaN previous parameter": set_array("learner/previous/", _with_nan),
    "optimizer": set_array("learner/optimizer/exp_avg/", lambda array: array[:1, None]),
    "optimizer dtype": set_array("learner/optimizer/exp_avg/", lambda a: a.astype(np.int8)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_content_that_does_not_fit_is_refused(
    name: str, resumable: Resumable, tmp_path: Path
) -> None:
    arrays, meta = resumable.content()
    CHANGES[name](arrays, meta)
    save_checkpoint(tmp_path / "a.ckpt", Checkpoint(arrays, meta))
    with pytest.raises(CheckpointError) as caught:
        resumable.check(tmp_path / "a.ckpt")
    assert "\n" not in str(caught.value)


def test_what_a_run_saved_fits(resumable: Resumable) -> None:
    resumable.check(resumable.path)


DOCUMENTS = {
    "deep lists": "[" * 200_000 + "]" * 200_000,
    "deep objects": '{"a":' * 200_000 + "1" + "}" * 200_000,
    "deep in an object": '{"config": {"a": ' + "[" * 900 + "]" * 900 + "}}",
    "null": "null",
    "a list": "[1]",
    "a number": "7",
    "metric": '{"metric": [1]}',
    "config": '{"config": [1]}',
    "env_steps": '{"env_steps": "many"}',
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_of_another_form_are_refused(name: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(1, None, Checkpoint({"value": np.array(1)}, {}))
    store.path(2).write_bytes(with_meta(DOCUMENTS[name]))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(store.path(2))
    assert "\n" not in str(caught.value)
    # As an old file, it blocks no run.
    assert CheckpointStore(tmp_path, keep=3).best is None
    assert open_checkpoint(tmp_path)[0] == store.path(1)


def bomb(path: Path) -> None:
    """Writes a file of some 64 KB with an array of 2 GiB."""
    size = 2 << 30
    head = json.dumps(
        {
            "__metadata__": {"meta": "{}"},
            "zeros": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
        }
    ).encode()
    head += b" " * (-len(head) % 8)
    compressor = zstandard.ZstdCompressor().compressobj(size=8 + len(head) + size)
    chunks = [compressor.compress(struct.pack("<Q", len(head)) + head)]
    zeros = bytes(1 << 24)
    chunks += [compressor.compress(zeros) for _ in range(size >> 24)]
    frame = b"".join([*chunks, compressor.flush()])
    digest = hashlib.sha256(frame).digest()
    path.write_bytes(struct.pack("<8sIQ32s", MAGIC, 3, len(frame), digest) + frame)


# A small process that runs a command and prints its highest memory in KiB. The kernel counts the
# memory of the process that starts a command as the command's own.
MEASURED = """
import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(ended.returncode)
"""


def test_a_small_file_cannot_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "step_000000000001.ckpt"
    path.parent.mkdir(parents=True)
    bomb(path)
    assert path.stat().st_size < 300_000
    too_large = "are more than the file can hold"
    for words, sign in (
        (("eval", f"checkpoint={path}"), too_large),
        (("train", f"resume={path}"), too_large),
        (("train", "resume=run"), "run has no intact checkpoint"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", MEASURED, *harness.command(*words)],
            cwd=tmp_path,
            env=harness.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.splitlines()[-1].startswith("htsrl: error: ")
        assert sign in ended.stderr
        assert int(ended.stdout.splitlines()[-1]) < 1 << 20


def test_arrays_that_compress_extremely_well_are_read_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.ckpt", Checkpoint({"zeros": np.zeros(150 << 20, np.uint8)}, {}))
    assert os.path.getsize(tmp_path / "a.ckpt") < 200_000
    assert not load_checkpoint(tmp_path / "a.ckpt").arrays["zeros"].any()
    assert find_checkpoint(tmp_path / "a.ckpt") == tmp_path / "a.ckpt"
