"""One job of `htsrl bench`, in one process or on several ranks."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from htsrl_cli.bench import benchmark, ranks
from htsrl_cli.cli.compose import (
    config_dir,
    to_bench_config,
    to_train_config,
    tuned_job,
    typed_words,
)
from htsrl_cli.ranks.environment import rank_and_size


def run_job(cfg: DictConfig) -> float:
    """Measures as Hydra's current job; returns the first runner's env steps per second.

    Args:
        cfg: the composed configuration.
    """
    hydra = HydraConfig.get()
    words = benchmark.train_words(typed_words(hydra, "task"))
    if folder := config_dir(hydra):
        words.append(f"--config-dir={folder}")
    cfg, _ = tuned_job(cfg)
    run_benchmark = ranks.run_benchmark if rank_and_size()[1] > 1 else benchmark.run_benchmark
    output = Path(hydra.runtime.output_dir)
    return run_benchmark(to_bench_config(cfg), to_train_config(cfg), words, output)
