"""Optimizers without torch's compiler compute what torch's own compute, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from htsrl_cli.algorithms.optimizers import eager


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.Adam, {"lr": 1e-3, "eps": 1e-5, "fused": True}),
        (torch.optim.RMSprop, {"lr": 1e-3, "alpha": 0.99, "eps": 1e-5, "foreach": True}),
    ],
    ids=["Adam", "RMSprop"],
)
def test_eager_optimizers_make_the_same_steps(
    optimizer_class: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(7, 5, generator=generator), torch.randn(3, generator=generator)]
    theirs = copy.deepcopy(ours)
    for parameter in (*ours, *theirs):
        parameter.requires_grad_()
    optimizers = eager(optimizer_class)(ours, **options), optimizer_class(theirs, **options)
    for _ in range(5):
        for mine, their in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            their.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.9
    for mine, their in zip(ours, theirs, strict=True):
        assert torch.equal(mine, their)
        states = optimizers[0].state[mine], optimizers[1].state[their]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert mine.requires_grad
    optimizers[0].zero_grad()
    assert ours[0].grad is None
