"""Sets who goes first where roles compete for a core; on Linux, without privileges.

Executors and actors wait for each other, the learner for nobody: where they go first, the slot is
filled early, and what is left of learning fills all cores by itself. Actors on a GPU need the
processor for an instant only, and all executors wait for them: there, executors stand back, too.
Free of torch and hydra.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from pathlib import Path

# Of the learner's threads on a processor, and of executors where actors are on a GPU.
_BACKGROUND_NICE = 10
# The shortest slice that the kernel grants.
_SHORT_SLICE_NS = 100_000
# glibc has no function for this call.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


class _SchedAttr(ctypes.Structure):
    """`struct sched_attr`, see sched_setattr(2)."""

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
    """Has this thread stand back where it competes with others; a nicer one stays as it is."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = max(_BACKGROUND_NICE, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, niceness)


def wake_promptly() -> None:
    """Has this thread run as soon as it is woken, for less at a time; its share stays the same.

    Whoever is running otherwise keeps the core for a slice of some milliseconds, which is an env
    step of several environments. A thread with a short slice does not wait for that (Linux 6.12;
    older kernels take the request and ignore it).
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    size = ctypes.sizeof(_SchedAttr)
    attributes = _SchedAttr(size, os.SCHED_OTHER, 0, nice, 0, _SHORT_SLICE_NS, 0, 0)
    # A sandbox may forbid the call: then things are as they were.
    ctypes.CDLL(None).syscall(number, 0, ctypes.byref(attributes), 0)


def core_wait_s(pid: int) -> float:
    """Returns the seconds that a process's main thread waited for a core; 0 where it is unknown."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
