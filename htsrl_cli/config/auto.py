"""Choice of the values that `auto` stands for on this machine.

Worker counts do not change results, but precisions, batch sizes and the linear kernel do. The
chosen values are therefore stored with the run. Devices and `actors.host` stay `auto` in the
configuration: they are chosen again whenever actors and the learner start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from htsrl_cli import machine
from htsrl_cli.config.plan import num_policies
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.ranks.environment import num_local_ranks

AUTO = "auto"
# If none of these files (NVIDIA, WSL, AMD) exists, there is no GPU and no need to import torch.
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
# Number of cores for each actor: one actor can serve the executors on this many cores.
_CORES_PER_ACTOR = 16
# Minimum and maximum number of rows of a forward pass on a CPU. Every pass reads all weights, so a
# small batch costs more time per row. A large batch takes longer to fill with requests. Env steps
# per second on Pong with A2C on AMD Zen 3, with 8, 16 and 32 rows: 755, 834, 869 (64 environments);
# 762, 788, 717 (32 environments).
_INFERENCE_ROWS = (8, 32)
_INFERENCE_ROWS_OF_GPU = 64
# Rows of a micro-batch: small enough for a core's cache, large enough to keep a GPU busy.
_MICRO_BATCH = {"cpu": 256, "gpu": 8192}
# The fastest fp32 kernel of the Nature CNN's linear layer. The first entry whose words are all in
# /proc/cpuinfo applies. `python -m scripts.kernels` measured the times below, with a gradient of
# 256 rows.
_LINEAR_KERNELS: Sequence[tuple[set[str], str]] = (
    # On AMD processors, oneDNN (convolution) uses AVX-512, but MKL (product) does not. AMD Zen 5:
    # 45 microseconds per row as a convolution, 89 as a product.
    ({"AuthenticAMD", "avx512f"}, "convolution"),
    # AMD Zen 3 with AVX2: 137 microseconds per row as a product, 772 as a convolution.
    (set(), "product"),
)


@dataclass(frozen=True)
class Choice:
    """The way in which the value of a key that is set to `auto` is chosen.

    Attributes:
        choose: function that returns the value; it must not read any key in CHOICES, because these
            keys may still hold placeholders.
        placeholder: valid value that the key holds until `choose` has returned its value.
    """

    choose: Callable[[TrainConfig], int | str]
    placeholder: int | str


def _num_cores() -> int:
    """Returns this rank's share of the cores, at least 1."""
    return max(1, machine.num_cores() // num_local_ranks())


def _num_executors(config: TrainConfig) -> int:
    """Returns the number of executors for which there are enough cores, at most `actors.num_envs`.

    An executor needs `env.cores_per_executor` cores, but only one core if the learner leaves its
    cores to the executors. The learner does so if it runs on a GPU, if `runner=sync` (it then waits
    while environments step), or if it makes only one pass over a rollout on a processor with
    AVX-512. If a process can hold only one environment, the result is `actors.num_envs`.
    """
    num_envs = config.actors.num_envs
    if config.env.one_per_process:
        return num_envs
    # Two executors instead of one on two cores, with A2C on Pong: 12 % (fp32) and 14 % (bf16) more
    # env steps per second on Intel with AVX-512, but 8 % fewer (fp32) on AMD Zen 3 with AVX2.
    learns_fast = config.algo.num_epochs == 1 and "avx512f" in machine.cpu_words()
    has_all = config.runner.schedule.lockstep or is_gpu(config.learner.device) or learns_fast
    per_executor = 1 if has_all else config.env.cores_per_executor
    return min(num_envs, max(1, _num_cores() // per_executor))


def _num_actors(config: TrainConfig) -> int:
    if config.runner.schedule.lockstep:
        return 1
    return -(-_num_cores() // _CORES_PER_ACTOR)


def _num_threads(config: TrainConfig) -> int:
    return 1 if is_gpu(config.learner.device) else _num_cores()


def _inference_batch(config: TrainConfig) -> int:
    """Returns the number of rows of a forward pass.

    It never exceeds the number of columns that one policy serves, because a larger batch would
    never be full. On a CPU it is half of these columns, within the limits in `_INFERENCE_ROWS`, so
    that a pass need not wait for the slower half. On a GPU it is all of these columns, up to
    `_INFERENCE_ROWS_OF_GPU`.
    """
    num_players = max(1, config.env.num_columns)
    num_columns = config.actors.num_envs * num_players // num_policies(config.algo, num_players)
    if is_gpu(config.actors.device):
        return min(num_columns, _INFERENCE_ROWS_OF_GPU)
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
    """Returns a copy of `plain` with placeholders for `auto` values, and the keys that got them.

    Only keys in CHOICES get placeholders.
    """
    held, keys = dict(plain), []
    for (section, key), choice in CHOICES.items():
        values = held.get(section)
        if isinstance(values, Mapping) and values.get(key) == AUTO:
            held[section] = {**values, key: choice.placeholder}
            keys.append((section, key))
    return held, keys


def fill(config: TrainConfig, keys: Collection[tuple[str, str]]) -> TrainConfig:
    """Returns `config` with a chosen value for each of `keys`, which come from `hold_places`."""
    filled = config
    for section, key in keys:
        value = CHOICES[section, key].choose(config)
        owner: Any = getattr(filled, section)
        changes: dict[str, Any] = {section: replace(owner, **{key: value})}
        filled = replace(filled, **changes)
    return filled


def is_gpu(device: str) -> bool:
    """Returns True if `device` names a GPU, or if it is `auto` and torch finds a GPU.

    Imports torch only if `device` is `auto` and the machine may have a GPU.
    """
    if device == AUTO and any(Path(name).exists() for name in _GPU_FILES):
        import torch

        return torch.cuda.is_available()
    return device.startswith("cuda")
