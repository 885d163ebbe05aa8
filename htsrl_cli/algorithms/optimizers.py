"""Optimizer classes of PyTorch that do not import PyTorch's compiler."""

from __future__ import annotations

import inspect
from typing import TypeVar

import torch

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)


def eager(optimizer_class: type[OptimizerT]) -> type[OptimizerT]:
    """Returns an equivalent optimizer class that does not import torch's compiler.

    torch wraps three methods of an optimizer to exclude them from compilation. The wrappers import
    the compiler. This import would add more than two seconds and 90 MB to every start.
    """
    add_param_group, zero_grad, step = (
        inspect.unwrap(getattr(optimizer_class, name))
        for name in ("add_param_group", "zero_grad", "step")
    )
    methods = {
        "add_param_group": add_param_group,
        "zero_grad": zero_grad,
        # torch's own wrapper of `step` also disables gradients.
        "step": torch.no_grad()(step),
    }
    return type(optimizer_class.__name__, (optimizer_class,), methods)
