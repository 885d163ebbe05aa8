"""Priorities of threads that compete for cores. Setting them needs Linux, but no privileges.

Executors and actors wait for each other, whereas the learner needs neither of them during an
update. A learner on a CPU therefore has a low priority: the slot is filled early, and the learner
then has all cores. Actors on a GPU need a core only briefly, but executors wait for them. If actors
are on a GPU, executors therefore have a low priority. This module imports neither torch nor hydra.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from pathlib import Path

# Niceness of the learner's threads on a CPU, and of executors if actors are on a GPU.
_BACKGROUND_NICE = 10
# The shortest time slice that the kernel grants, in nanoseconds.
_SHORT_SLICE_NS = 100_000
# The number of the system call sched_setattr, by architecture. It is called by number, because only
# glibc 2.41 and later have a function for it.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


class _SchedAttr(ctypes.Structure):
    """The C structure `sched_attr`; see sched_setattr(2)."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def stay_in_background() -> None:
    """Raises this thread's niceness to at least 10 on Linux, which lowers its priority."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = max(_BACKGROUND_NICE, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, niceness)


def wake_promptly() -> None:
    """Asks for short time slices, so that this thread runs as soon as it wakes up.

    Without this request, another thread could keep the core for several milliseconds, the time of
    several env steps. This thread's share of CPU time does not change. Kernels before Linux 6.12
    ignore the request.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    size = ctypes.sizeof(_SchedAttr)
    attributes = _SchedAttr(size, os.SCHED_OTHER, 0, nice, 0, _SHORT_SLICE_NS, 0, 0)
    # The result is not checked: if a sandbox forbids the call, the run keeps the default slices.
    ctypes.CDLL(None).syscall(number, 0, ctypes.byref(attributes), 0)


def core_wait_s(pid: int) -> float:
    """Returns the seconds that a process's main thread has waited for a core since it started.

    The result is 0 if this time is unknown.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
