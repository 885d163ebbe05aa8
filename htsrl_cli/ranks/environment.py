"""The environment variables by which `torchrun` numbers its processes; needs no torch."""

from __future__ import annotations

import os

# Names the variable with the number of a run among those that one `torchrun` makes.
RUN_NUMBER = "HTSRL_RUN_NUMBER"
# Variables that make a process a rank.
NEEDED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def rank_and_size() -> tuple[int, int]:
    """Returns the number of this rank and of all ranks; 0 and 1 without `torchrun`."""
    if not os.environ.keys() >= NEEDED:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def is_started_by_torchrun() -> bool:
    """Returns True if `torchrun` has started this process, and False for any other launcher."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def local_rank() -> int:
    """Returns the number of this rank among those of its machine; 0 without `torchrun`."""
    return int(os.environ.get("LOCAL_RANK", "0")) if rank_and_size()[1] > 1 else 0


def num_local_ranks() -> int:
    """Returns the number of ranks on this machine; 1 without `torchrun`."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if rank_and_size()[1] > 1 else 1
