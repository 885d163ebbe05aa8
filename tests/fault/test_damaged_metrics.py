"""A damaged `metrics.jsonl`: a resume warns, drops the damaged lines, and goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.fault.conftest import TOTAL, TOTAL_STEPS, Train
from tests.fault.processes import Run
from tests.harness import Fingerprint


def test_damaged_lines_do_not_block_a_resume(
    train: Train, start: Callable[..., Run], uninterrupted: Fingerprint
) -> None:
    run = train(TOTAL)
    run.wait_for_steps(1000)
    run.signal(signal.SIGTERM)
    assert run.wait() == 143, run.stderr
    assert run.env_steps < TOTAL_STEPS
    path = run.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"no JSON\n"
    lines[4] = bytes(40) + b"\n"
    lines[6] = b'{"env_steps": "\xff\xfe"}\n'
    lines[8] = b"[1, 2]\n"
    path.write_bytes(b"".join(lines))
    resumed = start("train", "resume=run")
    assert resumed.wait() == 0, resumed.stderr
    assert "metrics.jsonl: skipped 4 damaged lines" in resumed.stderr
    assert "Traceback" not in resumed.stderr
    kept = [line for i, line in enumerate(uninterrupted.metrics) if i not in (2, 4, 6, 8)]
    found = resumed.fingerprint()
    assert found.metrics == kept
    assert (found.params, found.rollouts) == (uninterrupted.params, uninterrupted.rollouts)
