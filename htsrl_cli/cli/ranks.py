"""The start of ranks other than rank 0, which need no configuration and no folder of their own."""

from __future__ import annotations

import sys

from htsrl_cli.errors import UsageError
from htsrl_cli.ranks.environment import rank_and_size


def follows(verb: str) -> bool:
    """Trains if `torchrun` has started this process as another rank than 0.

    Returns:
        False in rank 0 and in a process that is no rank, which then run the verb.

    Raises:
        HtsrlError: the ranks cannot train together, or the run failed.
    """
    rank, _ = rank_and_size()
    if rank == 0:
        return False
    if verb == "train":
        from htsrl_cli.runners.follow import follow
    elif verb == "bench":
        from htsrl_cli.bench.ranks import follow
    else:
        raise UsageError(f"{verb}: runs in one process only: start it without torchrun")
    follow()
    return True


def follows_in_job() -> bool:
    """Trains if this process is another rank than 0 of a job that submitit has started.

    The tasks of a job (`hydra.launcher.nodes`, `hydra.launcher.tasks_per_node`) become ranks.

    Returns:
        False in rank 0 and in a process that is no such rank, which then run the job.

    Raises:
        HtsrlError: the ranks cannot train together, or the run failed.
    """
    if "submitit" not in sys.modules:
        return False
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    try:
        if JobEnvironment().num_tasks == 1:
            return False
    except RuntimeError:
        # This process belongs to no job.
        return False
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    return follows("train")
