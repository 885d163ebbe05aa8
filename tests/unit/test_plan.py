"""Tests of the sizes that are derived from a run's configuration."""

from __future__ import annotations

from itertools import chain

import pytest

from htsrl_cli.config.plan import env_shares


@pytest.mark.parametrize("num_envs", [1, 2, 5, 12, 16, 17, 34])
def test_shares_are_contiguous_and_differ_by_at_most_one(num_envs: int) -> None:
    for num_processes in range(1, num_envs + 1):
        shares = env_shares(num_envs, num_processes)
        assert len(shares) == num_processes
        assert list(chain(*shares)) == list(range(num_envs))
        sizes = {len(share) for share in shares}
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
