"""Result files of the benchmarks, with the date, commit, machine and package versions."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from htsrl_cli.machine import cpu_words, num_cores, processor

ROOT = Path(__file__).resolve().parent.parent
# The folder of published results, with a subfolder for each kind of processor.
RESULTS = ROOT / "docs" / "results"
# The files that determine the speed and the results of a run.
_MEASURED_CODE = ("htsrl_cli", "configs", "constraints.txt")
# From the weakest to the strongest.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def result_path(name: str) -> Path:
    """Returns the path of the published result `name` that was measured on this machine.

    The folder is named after the strongest of `instruction_sets()`. If there are none, it is named
    after the processor's architecture.
    """
    kind = (instruction_sets() or [platform.machine()])[-1]
    return RESULTS / kind / f"{name}.json"


def instruction_sets() -> list[str]:
    """Returns this processor's instruction sets that affect throughput, the strongest last."""
    return [name for name in _INSTRUCTION_SETS if name in cpu_words()]


def write_result(
    path: Path, figures: Mapping[str, Any], earlier: Mapping[str, Any] | None = None
) -> None:
    """Writes figures and their provenance (key `measured`) as JSON; prints the path.

    Args:
        earlier: a result file's content from which some of the figures come. Its provenances are
            added as a list (key `measured_earlier`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    origins: dict[str, Any] = {"measured": provenance()}
    if earlier:
        origins["measured_earlier"] = [*earlier.get("measured_earlier", []), earlier["measured"]]
    result = {**origins, **figures}
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{path} written")


def read_result(path: Path) -> dict[str, Any]:
    """Returns the content of a result file; empty if there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content


def provenance() -> dict[str, Any]:
    """Returns the date, commit, machine and package versions of a measurement made now.

    The commit ends in `+` if the measured code has changes that are not committed.
    """
    changed = _git("status", "--porcelain", "--", *_MEASURED_CODE)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
        "processor": processor(),
        "instruction_sets": instruction_sets(),
        "cores": num_cores(),
        "gpu": _gpu(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "gymnasium", "ale-py")},
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
