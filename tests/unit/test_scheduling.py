"""Tests of the requests to the kernel: short time slices for actors, low priority for others."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from htsrl_cli.workers.scheduling import core_wait_s, stay_in_background, wake_promptly

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
KERNEL = tuple(int(part) for part in platform.release().split(".")[:2])
needs_slices = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in SCHED_GETATTR or KERNEL < (6, 12),
    reason="threads choose no slices before Linux 6.12",
)
SHORT_NS = 100_000


def slice_ns(thread: int) -> int:
    """Returns `sched_runtime` of sched_getattr(2), at byte 24."""
    attributes = (ctypes.c_uint64 * 6)()
    size = ctypes.sizeof(attributes)
    libc = ctypes.CDLL(None, use_errno=True)
    number = SCHED_GETATTR[platform.machine()]
    assert libc.syscall(number, thread, attributes, size, 0) == 0, os.strerror(ctypes.get_errno())
    return attributes[3]


def nice(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def become_nice(niceness: int) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def in_thread(*calls: Callable[[], object]) -> object:
    """Makes all calls in a new thread; returns the result of the last one."""
    with ThreadPoolExecutor(1) as pool:
        return [pool.submit(call).result() for call in calls][-1]


def own_slice_and_nice() -> tuple[int, int]:
    return slice_ns(0), nice(0)


@needs_slices
@pytest.mark.parametrize("more", [0, 3])
def test_a_short_slice_at_the_same_priority(more: int) -> None:
    niceness = nice(0) + more
    be_nice = partial(become_nice, niceness)
    before = in_thread(be_nice, own_slice_and_nice)
    assert isinstance(before, tuple)
    assert before[0] > SHORT_NS
    assert in_thread(be_nice, wake_promptly, own_slice_and_nice) == (SHORT_NS, niceness)


def test_only_this_thread_stands_back() -> None:
    before = nice(0)
    assert in_thread(stay_in_background, lambda: nice(0)) == 10 != before
    assert nice(0) == before


def test_a_nicer_thread_is_not_made_less_nice() -> None:
    # The kernel refuses to lower a niceness without privileges.
    assert in_thread(partial(become_nice, 15), stay_in_background, lambda: nice(0)) == 15


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux counts it")
def test_wait_for_a_core_is_known_of_processes_that_there_are() -> None:
    assert core_wait_s(os.getpid()) > 0
    assert core_wait_s(2**30) == 0
