"""Sums over four ranks: large and small gradients, which travel in different ways."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from htsrl_cli.ranks.group import _SMALL
from htsrl_cli.ranks.shards import tree_sum

SIZE = 4
# A gradient has a second tensor of these numbers, so that no slice ends where a tensor does.
SECOND = 5
# Each rank sums the gradient and the losses that it reads, and writes what it gets.
RANK = """
import sys
import torch
from htsrl_cli.ranks.group import joined

torch.set_num_threads(1)
with joined() as group:
    for name in sys.argv[1:]:
        gradient, losses = torch.load(f"{name}_{group.rank}.pt")
        losses = group.sum(gradient, losses)
        torch.save((gradient, losses), f"{name}_sum_{group.rank}.pt")
"""


def test_sums_of_ranks_are_those_of_the_tree(tmp_path: Path) -> None:
    numbers = {"small": 10, "large": _SMALL // (4 * SIZE) + 1}
    torch.manual_seed(0)
    parts = {
        name: [
            ([torch.randn(n), torch.randn(SECOND)], torch.full((2, 1, 3), float(rank)))
            for rank in range(SIZE)
        ]
        for name, n in numbers.items()
    }
    for name, of_ranks in parts.items():
        for rank, part in enumerate(of_ranks):
            torch.save(part, tmp_path / f"{name}_{rank}.pt")
    _run_ranks(tmp_path, list(numbers))
    for name, of_ranks in parts.items():
        expected = tree_sum([gradient for gradient, _ in of_ranks])
        for rank in range(SIZE):
            gradient, losses = torch.load(tmp_path / f"{name}_sum_{rank}.pt")
            assert all(map(torch.equal, gradient, expected))
            assert losses[:, :, 0].tolist() == [[0, 1, 2, 3]] * 2


def _run_ranks(folder: Path, names: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": SIZE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", RANK, *names]
    ranks = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {key: str(value) for key, value in (shared | {"RANK": rank}).items()},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(SIZE)
    ]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * SIZE, "\n".join(errors)
