"""Facts about this machine: its cores, and whether its processor computes in bf16."""

from __future__ import annotations

import os
from pathlib import Path


def num_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Returns the cores that this process may use: its affinity's, within its container's quota."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        # No such file, or `max`.
        return cores


def has_bf16() -> bool:
    """Returns True if the processor multiplies bf16 itself (AVX-512 BF16, AMX, or Arm's BF16)."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
