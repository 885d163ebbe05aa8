"""Selection of devices, settings of torch, recordings of GPU work, and pinned memory."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

from htsrl_cli.errors import ConfigError, RunError
from htsrl_cli.ranks.environment import local_rank
from htsrl_cli.storage.memory import Array

T = TypeVar("T")

# Flags that make results depend on more than the inputs, or cost time.
_FLAGS: tuple[tuple[Any, str], ...] = (
    (torch.utils.deterministic, "fill_uninitialized_memory"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cudnn, "allow_tf32"),
)

# Held during a recording. A recording first waits for the whole device, which is forbidden while
# another thread records.
_RECORDING = threading.Lock()
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# glibc refuses an mmap threshold above 32 MiB (DEFAULT_MMAP_THRESHOLD_MAX).
_OPTIONS = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 1 << 30, _M_TOP_PAD: 64 << 20}


def set_up_torch() -> None:
    """Makes torch deterministic and single-threaded, and keeps freed memory mapped.

    The bits of an operation's result depend on its number of threads. Every operation therefore
    uses one thread, and the learner parallelizes over micro-batches instead.
    """
    _make_deterministic()
    _keep_freed_memory()


@contextmanager
def torch_set_up() -> Iterator[None]:
    """Makes torch deterministic and single-threaded in a `with` block, then restores its settings.

    For passes in a user's own program. The environment variable CUBLAS_WORKSPACE_CONFIG stays set.
    """
    num_threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    flags = [(owner, name, getattr(owner, name)) for owner, name in _FLAGS]
    _make_deterministic()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        torch.set_deterministic_debug_mode(mode)
        for owner, name, value in flags:
            setattr(owner, name, value)


def _make_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(1)
    # Like use_deterministic_algorithms(True), but without importing torch's compiler, which would
    # add over 2 s to every start.
    torch.set_deterministic_debug_mode("error")
    for owner, name in _FLAGS:
        setattr(owner, name, False)


def _keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks instead of returning them to the kernel.

    Otherwise, each activation would be unmapped when it is freed, and mapped again in the next
    minibatch. This would cause thousands of page faults, in which threads wait for each other.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, num_bytes in _OPTIONS.items():
            libc.mallopt(option, num_bytes)


def resolve_device(key: str, name: str) -> torch.device:
    """Returns the device that a configuration names.

    Args:
        key: the configuration key, for the error message.
        name: `cpu`, `cuda` (the first GPU), `cuda:N`, or `auto` (the first GPU, or the CPU if
            there is no GPU). Of the ranks on one machine (`torchrun`), the first one takes the
            first GPU, the second one the second, and so on.

    Raises:
        ConfigError: the device does not exist.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device(f"cuda:{local_rank()}" if name in ("auto", "cuda") else name)
    if not torch.cuda.is_available():
        raise ConfigError(key, name, f"torch finds no GPU here: use {key}=cpu or {key}=auto")
    if (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            key,
            name,
            f"torch finds only {torch.cuda.device_count()} GPU(s) here, numbered from cuda:0: use "
            "a lower number",
        )
    return device


def settle_on(device: torch.device) -> None:
    """Makes `device` this thread's default GPU; does nothing for the CPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def sleep_until_done(device: torch.device) -> None:
    """Blocks until a GPU has finished this thread's work; returns at once for the CPU.

    Reading a result would also wait, but it would keep a core busy that an executor could use.
    """
    if device.type == "cuda":
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        event.synchronize()


def record(work: Callable[[], T], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, T]:
    """Runs `work` once on a GPU, then records it as a CUDA graph without running it.

    The graph's `replay` runs all kernels with one call. Starting the many small kernels from Python
    would take longer than running them.

    Args:
        work: a function that starts work on the current stream. Its inputs and outputs must have
            fixed addresses.
        stream: the stream to record on.

    Returns:
        The recording, and the results of `work`, which every replay overwrites.
    """
    with _RECORDING, torch.cuda.stream(stream):
        torch.cuda.synchronize()
        # Libraries initialize themselves when they are first used. This must not be recorded.
        work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # In this mode, other threads may use the device during the recording.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            results = work()
    return graph, results


def pin(array: Array) -> None:
    """Locks an array's pages in memory until `unpin`, so that a GPU copies from them directly.

    Raises:
        RunError: the driver cannot lock the pages.
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
    """Unlocks an array that `pin` locked; call it before the memory is freed."""
    torch.cuda.cudart().cudaHostUnregister(array.ctypes.data)  # type: ignore[no-untyped-call]
