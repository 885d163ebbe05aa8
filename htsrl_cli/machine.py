"""Properties of this machine: cores, the processor, and versions of installed packages."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def num_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Returns the number of cores that this process may use, at least 1.

    This is the smaller of two numbers: the cores in the process's CPU affinity, and the container's
    CPU quota (if there is one), rounded down.

    Args:
        quota_file: cgroup v2 file that holds the quota and its period.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        # There is no quota: the file does not exist, or the quota in it is `max`.
        return cores


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
