"""Process-wide torch settings that reproducibility and speed need."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import torch

from htsrl_cli.errors import ConfigError

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
    torch.use_deterministic_algorithms(True)
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
