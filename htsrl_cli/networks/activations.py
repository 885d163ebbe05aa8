"""Activations that actors keep, so that the learner needs only a backward pass.

A2C takes its gradient at the parameters of the behavior policy (HTS-RL paper, Eq. 6): the learner's
forward pass would repeat the actors'. So actors keep the outputs of the network's layers beside the
slot, which saves the learner a quarter (bf16) to a third (fp32) of its work.

A network calls a `Layer` to compute each of its layers. `relu_layer` computes it, `CachingLayers`
also keep the output, and `CachedLayers` take a kept output instead. Arrays are channels-last, like
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

# NumPy has no bfloat16: its bits are kept as uint16.
_DTYPES = {torch.float32: "float32", torch.bfloat16: "uint16"}


class Layer(Protocol):
    """A function that computes a layer of a network, or stands in for it."""

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
    ) -> Tensor:
        """Returns max(0, y) for y = x weight^T + bias, or for y the convolution of images x.

        Args:
            x: [N, I], or images [N, C, H, W] to convolve.
            weight: [O, I], or kernels [O, C, h, w].
            bias: [O].
            stride: the convolution's stride over rows and columns.
        """


def relu_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
) -> Tensor:
    """Computes a layer; see `Layer`.

    It rectifies in place: the gradient does not need the values before.
    """
    if x.dim() == 2:
        return F.relu_(F.linear(x, weight, bias))
    return F.relu_(F.conv2d(x, weight, bias, stride))


class CachingLayers:
    """A `Layer` that computes its outputs and keeps them.

    Attributes:
        outputs: the outputs in order of computation, each [N, ...] with channels last.
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
    """A `Layer` that takes kept outputs and computes only gradients.

    Args:
        outputs: outputs that `CachingLayers` kept for the same inputs and parameters.
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
    """The backward pass of `relu_layer`, with a kept output as the forward pass."""

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
    """Returns shape and dtype of an array for one row of each output."""
    return [(tuple(y.shape[1:]), _DTYPES[y.dtype]) for y in outputs]


def as_array(output: Tensor) -> Array:
    """Returns an output as an array of the dtype in `layout_of`, without a copy."""
    array: Array = (output.view(torch.uint16) if output.dtype == torch.bfloat16 else output).numpy()
    return array


def as_tensor(array: Array) -> Tensor:
    """Returns an array of `as_array` as a tensor again, without a copy."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
