"""The `htsrl` fixture, and a summary of the tests that were left out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import warm

ROOT = Path(__file__).resolve().parent.parent
Htsrl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def htsrl(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Htsrl:
    """Returns a function that runs `htsrl WORDS ...` in an empty folder or in `cwd`.

    Its argument `env` adds environment variables, and starts a new interpreter instead of a fork.
    """

    def run(
        *words: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        if env is None:
            outputs = tmp_path_factory.mktemp("outputs")
            environment = {**os.environ, "PYTHONPATH": path}
            return warm.run(*words, cwd=cwd or tmp_path, environment=environment, outputs=outputs)
        return subprocess.run(
            [sys.executable, "-m", "htsrl_cli", *words],
            cwd=cwd or tmp_path,
            env={**os.environ, "PYTHONPATH": path, **env},
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run


# Numbers of deselected tests by reason. Tests are counted where they are collected, with
# pytest-xdist in its workers, and the main process shows the numbers.
_DESELECTED = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_DESELECTED] = Counter()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        reasons = [m.kwargs.get("reason", "slow") for m in item.iter_markers("slow")]
        # Prefer a mark with a reason to one without.
        reason = max(reasons, key=len, default="deselected")
        item.config.stash[_DESELECTED][f"{reason} (make test-slow)" if reasons else reason] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    worker_output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if worker_output is not None:
        worker_output["deselected"] = dict(session.config.stash[_DESELECTED].items())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    # Every worker collects all tests: take the maximum, not the sum.
    found: dict[str, int] = getattr(node, "workeroutput", {}).get("deselected", {})
    node.config.stash[_DESELECTED] |= Counter(found)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints how many tests were left out, one line for each reason."""
    left_out = config.stash[_DESELECTED] + Counter(
        # A file skipped as a whole counts once: its tests are not known.
        report.longrepr[2].removeprefix("Skipped: ")
        + (" [a file]" if report.nodeid.endswith(".py") else "")
        for report in terminalreporter.stats.get("skipped", [])
    )
    if not left_out:
        return
    terminalreporter.section("left out")
    for reason, count in left_out.most_common():
        terminalreporter.write_line(f"{count:5} {reason}")
