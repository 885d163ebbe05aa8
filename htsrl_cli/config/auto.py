"""Values that `auto` stands for on this machine.

Worker counts change no result. Precisions and batch sizes do, so the chosen values are stored with
the run. A device stays `auto` in the configuration; the role that uses it resolves it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from htsrl_cli import machine
from htsrl_cli.config.plan import num_policies
from htsrl_cli.config.sections import TrainConfig

AUTO = "auto"
# Without any of these files (NVIDIA, WSL, AMD) there is no GPU, and torch need not be imported.
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
# Number of cores whose executors one actor can serve.
_CORES_PER_ACTOR = 16
# Least and most rows of a forward pass on a CPU. Each pass reads all weights, so few rows are
# slow; many rows fill late. Pong with 64 environments, A2C, on AMD Zen 3: 755 env steps/s with 8
# rows, 834 with 16, 869 with 32; with 32 environments 762 with 8, 788 with 16, 717 with 32.
_INFERENCE_ROWS = (8, 32)
_INFERENCE_ROWS_OF_GPU = 64
# Rows of a micro-batch: few fit into a core's cache, many fill a GPU.
_MICRO_BATCH = {"cpu": 256, "gpu": 8192}
# The fastest fp32 kernel of the Nature CNN's linear layer. The first line counts whose words are
# all in /proc/cpuinfo. Times are those of `python -m scripts.kernels`, a gradient of 256 rows.
_LINEAR_KERNELS: Sequence[tuple[set[str], str]] = (
    # MKL does not use AVX-512 on AMD's processors, but oneDNN does. Measured with htsrl 0.1 only:
    # products took twice as long.
    ({"AuthenticAMD", "avx512f"}, "convolution"),
    # AMD Zen 3, AVX2: 137 microseconds a row, against 772 as a convolution.
    (set(), "product"),
)


@dataclass(frozen=True)
class Choice:
    """Choice of the value of a key that is `auto`.

    Attributes:
        choose: returns the value; reads only keys that are not in CHOICES.
        placeholder: valid value that stands in until the choice.
    """

    choose: Callable[[TrainConfig], int | str]
    placeholder: int | str


def _num_executors(config: TrainConfig) -> int:
    """Returns the number of executors: at most one for `cores_per_executor`, with equal shares.

    A learner on a GPU leaves all cores to them, and so does `runner=sync`, under which nobody else
    works while environments step.
    """
    num_envs = config.actors.num_envs
    if config.env.one_per_process:
        return num_envs
    has_all = config.runner.schedule.lockstep or is_gpu(config.learner.device)
    per_executor = 1 if has_all else config.env.cores_per_executor
    most = min(num_envs, max(1, machine.num_cores() // per_executor))
    return max(n for n in range(1, most + 1) if num_envs % n == 0)


def _num_actors(config: TrainConfig) -> int:
    if config.runner.schedule.lockstep:
        return 1
    return -(-machine.num_cores() // _CORES_PER_ACTOR)


def _num_threads(config: TrainConfig) -> int:
    return 1 if is_gpu(config.learner.device) else machine.num_cores()


def _inference_batch(config: TrainConfig) -> int:
    """Returns the rows of a forward pass, at most the columns that one policy serves.

    A larger batch would never be full. On a CPU they are half of the columns, so that a pass need
    not wait for the slower half.
    """
    num_players = max(1, config.env.num_columns)
    num_columns = config.actors.num_envs * num_players
    if is_gpu(config.actors.device):
        return min(num_columns, _INFERENCE_ROWS_OF_GPU)
    num_columns //= num_policies(config.algo, num_players)
    least, most = _INFERENCE_ROWS
    return min(num_columns, max(least, min(num_columns // 2, most)))


def _micro_batch(config: TrainConfig) -> int:
    return _MICRO_BATCH["gpu" if is_gpu(config.learner.device) else "cpu"]


def _linear_kernel(_: TrainConfig) -> str:
    words = machine.cpu_words()
    return next(kernel for needed, kernel in _LINEAR_KERNELS if needed <= words)


def _precision(device: str) -> str:
    return "bf16" if is_gpu(device) or machine.has_bf16() else "fp32"


CHOICES: Mapping[tuple[str, str], Choice] = {
    ("actors", "num_executors"): Choice(_num_executors, 1),
    ("actors", "num_actors"): Choice(_num_actors, 1),
    ("actors", "inference_batch"): Choice(_inference_batch, 1),
    ("actors", "precision"): Choice(lambda config: _precision(config.actors.device), "fp32"),
    ("network", "linear_kernel"): Choice(_linear_kernel, "product"),
    ("learner", "num_threads"): Choice(_num_threads, 1),
    ("learner", "micro_batch"): Choice(_micro_batch, 1),
    ("learner", "precision"): Choice(lambda config: _precision(config.learner.device), "fp32"),
}


def hold_places(plain: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Returns `plain` with a placeholder for each `auto`, and the keys that got one."""
    held, keys = dict(plain), []
    for (section, key), choice in CHOICES.items():
        values = held.get(section)
        if isinstance(values, Mapping) and values.get(key) == AUTO:
            held[section] = {**values, key: choice.placeholder}
            keys.append((section, key))
    return held, keys


def fill(config: TrainConfig, keys: Collection[tuple[str, str]]) -> TrainConfig:
    """Returns `config` with chosen values for `keys`, which `hold_places` returned."""
    filled = config
    for section, key in keys:
        value = CHOICES[section, key].choose(config)
        owner: Any = getattr(filled, section)
        changes: dict[str, Any] = {section: replace(owner, **{key: value})}
        filled = replace(filled, **changes)
    return filled


def is_gpu(device: str) -> bool:
    """Returns True if a configured device is a GPU, or is `auto` and torch finds a GPU.

    Imports torch only if the machine may have a GPU.
    """
    if device == AUTO and any(Path(name).exists() for name in _GPU_FILES):
        import torch

        return torch.cuda.is_available()
    return device.startswith("cuda")
