"""What this machine has, and what `auto` stands for here.

Worker counts change no result. Precisions and sizes of batches do: what `auto` came to is stored
with the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from htsrl_cli.config.sections import FootballConfig

# Where there is none of these (NVIDIA, WSL, AMD) torch need not be asked.
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
# One actor keeps up with so many cores' executors.
_CORES_PER_ACTOR = 16
# Rows of a forward pass and of a micro-batch: few stay in a core's cache, many fill a GPU.
_INFERENCE_BATCH = {"cpu": 8, "gpu": 64}
_MICRO_BATCH = {"cpu": 256, "gpu": 8192}


def num_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: of its affinity, and of its container's quota."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        # No such file, or `max`.
        return cores


def fill_auto(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A training run's plain configuration with every `auto` but those of devices replaced."""
    filled = dict(plain)
    for (section, key), choose in _AUTO.items():
        values = filled.get(section)
        if isinstance(values, Mapping) and values.get(key) == "auto":
            filled[section] = {**values, key: choose(plain)}
    return filled


def _num_executors(plain: Mapping[str, Any]) -> int:
    """At most one process for each core, with equal shares of the environments."""
    num_envs = plain["actors"].get("num_envs")
    if not isinstance(num_envs, int) or num_envs < 1:
        return 1
    env = plain["env"]
    if env.get("kind") == FootballConfig.kind and _is_rendered(env):
        return num_envs
    return max(n for n in range(1, min(num_envs, num_cores()) + 1) if num_envs % n == 0)


def _is_rendered(football: Mapping[str, Any]) -> bool:
    """See `FootballConfig.is_rendered`."""
    return str(football.get("representation")).startswith("pixels")


def _num_actors(plain: Mapping[str, Any]) -> int:
    return 1 if plain["runner"].get("name") == "sync" else -(-num_cores() // _CORES_PER_ACTOR)


def _num_threads(plain: Mapping[str, Any]) -> int:
    return 1 if _is_gpu(plain["learner"].get("device")) else num_cores()


def _inference_batch(plain: Mapping[str, Any]) -> int:
    """On a GPU at most the number of players: a wider pass would never be full."""
    if not _is_gpu(plain["actors"].get("device")):
        return _INFERENCE_BATCH["cpu"]
    env, num_envs = plain["env"], plain["actors"].get("num_envs")
    of_env = [env.get(key, 0) for key in ("num_left_players", "num_right_players")]
    if not all(isinstance(number, int) for number in (num_envs, *of_env)):
        return _INFERENCE_BATCH["gpu"]
    num_players: int = num_envs * (sum(of_env) or 1)
    return max(1, min(num_players, _INFERENCE_BATCH["gpu"]))


def _micro_batch(plain: Mapping[str, Any]) -> int:
    return _MICRO_BATCH["gpu" if _is_gpu(plain["learner"].get("device")) else "cpu"]


def _precision(section: str) -> Callable[[Mapping[str, Any]], str]:
    def choose(plain: Mapping[str, Any]) -> str:
        fast = _is_gpu(plain[section].get("device")) or has_bf16()
        return "bf16" if fast else "fp32"

    return choose


_AUTO: dict[tuple[str, str], Callable[[Mapping[str, Any]], int | str]] = {
    ("actors", "num_executors"): _num_executors,
    ("actors", "num_actors"): _num_actors,
    ("actors", "inference_batch"): _inference_batch,
    ("actors", "precision"): _precision("actors"),
    ("learner", "num_threads"): _num_threads,
    ("learner", "micro_batch"): _micro_batch,
    ("learner", "precision"): _precision("learner"),
}


def _is_gpu(device: object) -> bool:
    """Whether a configured device is or becomes a GPU; looks only where there may be one."""
    if device == "auto" and any(Path(name).exists() for name in _GPU_FILES):
        import torch

        return torch.cuda.is_available()
    return str(device).startswith("cuda")


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 numbers itself (AVX-512 BF16, AMX, or Arm's BF16)."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
