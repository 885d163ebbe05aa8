"""The start of ranks other than rank 0, which need no configuration and no folder of their own."""

from __future__ import annotations

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
    if verb != "train":
        raise UsageError(f"{verb}: runs in one process only: start it without torchrun")

    from htsrl_cli.runners.follow import follow

    follow()
    return True
