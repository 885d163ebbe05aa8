"""Activations kept from the pass that acted, for a gradient at the same parameters.

A2C takes its gradient at the parameters that acted (paper, Eq. 6): the learner's forward pass
would be the actor's once more. So the actor keeps the outputs of the network's layers beside the
slot, and the learner only goes back. That saves a quarter (bf16) to a third (fp32) of its work.

Networks call a `Layer` where they compute one: `relu_layer` computes it, `CachingLayers` keep the
output besides, `CachedLayers` take an output that was kept. Arrays have channels last, like
observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from htsrl_cli.storage.memory import Array, ArrayType

# numpy has no bfloat16.
_DTYPES = {torch.float32: "float32", torch.bfloat16: "uint16"}


class Layer(Protocol):
    """A function that computes a layer of a network, or stands in for it."""

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
    ) -> Tensor:
        """max(0, y) of y = x weight^T + bias, x [N, I], or of a convolution of x [N, C, H, W]."""


def relu_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
) -> Tensor:
    """A `Layer`. Rectified in place: the gradient does not need what was there before."""
    if x.dim() == 2:
        return F.relu_(F.linear(x, weight, bias))
    return F.relu_(F.conv2d(x, weight, bias, stride))


class CachingLayers:
    """`Layer`s that keep their outputs.

    Attributes:
        outputs: in order, [N, ...] with channels last.
    """

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
    ) -> Tensor:
        y = relu_layer(x, weight, bias, stride)
        self.outputs.append(y if y.dim() == 2 else y.permute(0, 2, 3, 1))
        return y


class CachedLayers:
    """`Layer`s that compute nothing but gradients.

    Args:
        outputs: what `CachingLayers` kept, with the same inputs and parameters.
    """

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        self._outputs = iter(outputs)

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
    ) -> Tensor:
        y = next(self._outputs)
        y = y if y.dim() == 2 else y.permute(0, 3, 1, 2)
        cached: Tensor = _CachedLayer.apply(x, weight, bias, stride, y)  # type: ignore[no-untyped-call]
        return cached


class _CachedLayer(torch.autograd.Function):
    """The backward pass of `relu_layer`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        y: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, y)
        ctx.stride = stride
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
        if x.dim() == 2:
            grad_x = grad @ weight if needed[0] else None
            return grad_x, grad.t() @ x, grad.sum(0) if needed[2] else None, None, None
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, weight.shape[:1], ctx.stride, (0, 0), (1, 1), False, (0, 0), 1, needed
        )
        return *found, None, None


def layout_of(outputs: Sequence[Tensor]) -> list[ArrayType]:
    """Shape and dtype of the arrays that hold a row of each of these outputs."""
    return [(tuple(y.shape[1:]), _DTYPES[y.dtype]) for y in outputs]


def as_array(output: Tensor) -> Array:
    """An output as an array of the dtype that `layout_of` says; not a copy."""
    array: Array = (output.view(torch.uint16) if output.dtype == torch.bfloat16 else output).numpy()
    return array


def as_tensor(array: Array) -> Tensor:
    """Returns the tensor that `as_array` made an array of; not a copy."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
