"""Devices: which one a key names, torch's process-wide settings, and recordings on a GPU."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch

from htsrl_cli.errors import ConfigError, RunError
from htsrl_cli.storage.memory import Array

T = TypeVar("T")

# While a thread records, no other may wait for the whole device, as recording begins with.
_RECORDING = threading.Lock()
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# glibc refuses an mmap threshold above 32 MiB (DEFAULT_MMAP_THRESHOLD_MAX).
_OPTIONS = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 1 << 30, _M_TOP_PAD: 64 << 20}


def set_up_torch() -> None:
    """Makes torch deterministic and single-threaded, and keeps freed activations mapped.

    Parallelism is the learner's own (micro-batches): the bits of an operation depend on its
    number of intra-op threads.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(1)
    # As use_deterministic_algorithms(True), which imports torch's compiler, too: over 2 s of start.
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Tells glibc not to return large blocks to the kernel.

    It would unmap each activation when freed and fault it in again in the next minibatch,
    thousands of page faults for which threads queue.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, num_bytes in _OPTIONS.items():
            libc.mallopt(option, num_bytes)


def resolve_device(key: str, name: str) -> torch.device:
    """The device that a configuration names; `auto` is the first GPU if there is one.

    Args:
        key: the configuration key, for the message.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    if not torch.cuda.is_available():
        raise ConfigError(key, name, "torch finds no GPU here; use cpu or auto")
    if (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(key, name, f"there are {torch.cuda.device_count()} GPUs, from cuda:0")
    return device


def settle_on(device: torch.device) -> None:
    """Makes a GPU the one that this thread uses unless told otherwise, and not the first one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def sleep_until_done(device: torch.device) -> None:
    """Waits for what this thread has asked of a GPU; on the CPU everything is done at once.

    Reading a result would wait by itself, but keep a core busy that an executor could use.
    """
    if device.type == "cuda":
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        event.synchronize()


def record(work: Callable[[], T], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, T]:
    """Has a GPU do some work once, then records it without doing it (a CUDA graph).

    `replay` does it in one call, where Python would take longer to start the many small kernels
    than they run.

    Returns:
        The recording, and what `work` returned: every replay writes its results there.
    """
    with _RECORDING, torch.cuda.stream(stream):
        torch.cuda.synchronize()
        # What libraries set up when they are first used must not be part of the recording.
        work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads go on using the device.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            results = work()
    return graph, results


def pin(array: Array) -> None:
    """Locks an array's pages in memory, from which a GPU then copies without a detour; see `unpin`.

    Raises:
        RunError: the driver cannot.
    """
    status = torch.cuda.cudart().cudaHostRegister(  # type: ignore[no-untyped-call]
        array.ctypes.data, array.nbytes, 0
    )
    try:
        torch.cuda.check_error(int(status))
    except RuntimeError as error:
        raise RunError(
            f"the GPU's driver cannot lock {array.nbytes / 2**20:.0f} MiB in memory ({error}); "
            "lower actors.num_envs or runner.sync_interval"
        ) from error


def unpin(array: Array) -> None:
    """Ends `pin`, before the array's memory is freed."""
    torch.cuda.cudart().cudaHostUnregister(array.ctypes.data)  # type: ignore[no-untyped-call]
