"""torch's optimizers without torch's compiler."""

from __future__ import annotations

import inspect
from typing import TypeVar

import torch

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)


def eager(optimizer_class: type[OptimizerT]) -> type[OptimizerT]:
    """Returns an optimizer class that computes the same and does not import torch's compiler.

    torch wraps these methods to keep the compiler away from them, and imports it to do so: over
    two seconds of every start, and 90 MB.
    """
    add_param_group, zero_grad, step = (
        inspect.unwrap(getattr(optimizer_class, name))
        for name in ("add_param_group", "zero_grad", "step")
    )
    methods = {
        "add_param_group": add_param_group,
        "zero_grad": zero_grad,
        # The wrapper also switches gradients off.
        "step": torch.no_grad()(step),
    }
    return type(optimizer_class.__name__, (optimizer_class,), methods)
