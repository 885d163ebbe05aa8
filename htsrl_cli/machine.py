"""Properties of this machine: cores, the processor, and versions of installed packages."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from htsrl_cli.cgroups import ROOT, group_folders


def num_cores(root: Path = ROOT) -> int:
    """Returns the number of cores that this process may use, at least 1.

    This is the number of cores in the process's CPU affinity, or the smallest CPU quota of its
    control groups, rounded down, if that is less.

    Args:
        root: the folder that contains /proc and the mounted file systems.
    """
    # On a fraction of a core, another worker would gain little: once the group has used up its
    # quota, the kernel stops all workers until the next period. automaxprocs rounds down, too,
    # whereas Go, Java and loky round up.
    quotas = [quota for folder in group_folders("cpu", root) for quota in _quotas(folder)]
    return max(1, min([_affinity(), *quotas]))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(group: Path) -> Iterator[int]:
    """Yields a control group's CPU quota in whole cores; nothing if it has none.

    If there is no quota, the files contain `max` (version 2) or -1 (version 1).
    """
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        yield int(quota) // int(period)
    with suppress(OSError, ValueError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) // int(period)


def processor(info_file: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the processor's name with its family and model, which identify its generation.

    Args:
        info_file: Linux's description of the processor.
    """
    try:
        text = info_file.read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    name = found.get("model name") or platform.machine()
    family = f"family {found['cpu family']}, model {found['model']}" if "model" in found else ""
    return f"{name} ({family})" if family else name


def has_bf16() -> bool:
    """Returns True if /proc/cpuinfo lists bf16 instructions (AVX-512 BF16, AMX or Arm BF16)."""
    return not cpu_words().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def cpu_words() -> set[str]:
    """Returns all words of /proc/cpuinfo, which include the processor's vendor and flags.

    The set is empty on systems other than Linux.
    """
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return set()


def package_versions(*names: str) -> dict[str, str]:
    """Returns the versions of packages by name, without the packages that are not installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
