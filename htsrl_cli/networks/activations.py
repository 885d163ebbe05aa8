"""Activations that actors keep, so that the learner computes only the backward pass.

A2C computes its gradient at the parameters of the behavior policy (HTS-RL paper, Eq. 6). If actors
and learner both use the CPU and the same precision, the learner's forward pass would only repeat
the actors' forward passes. Actors therefore keep the outputs of the network's layers in memory
beside the slot. This saves the learner a quarter (bf16) to a third (fp32) of its work.

A network calls a `Layer` to compute each of its layers. `relu_layer` computes the output,
`CachingLayers` also keeps it, and `CachedLayers` returns an output that was kept earlier. Kept
arrays are channels-last, like observations.
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
    """A function that computes the output of a network's layer, or returns one that was kept."""

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
    ) -> Tensor:
        """Returns max(0, y), where y is the result of a linear layer or an unpadded convolution.

        Args:
            x: vectors [N, I] for a linear layer, or images [N, C, H, W] for a convolution.
            weight: the linear layer's weights [O, I], or the convolution's kernels [O, C, h, w].
            bias: the biases [O]; None if the layer has no bias.
            stride: the convolution's strides along the height and along the width.
        """


def relu_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
) -> Tensor:
    """Computes a layer's output, including the ReLU; see `Layer` for the arguments.

    The ReLU is computed in place, because the gradient needs only its output.
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
    """A `Layer` that returns kept outputs, so that only gradients are computed.

    Args:
        outputs: the outputs that `CachingLayers` kept for the same inputs and parameters.
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
    """An operation whose forward pass returns a kept output of `relu_layer`, without computing it.

    Its backward pass computes the gradients of `relu_layer`.
    """

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
    """Returns, for each output, the shape and NumPy dtype of one of its rows."""
    return [(tuple(y.shape[1:]), _DTYPES[y.dtype]) for y in outputs]


def as_array(output: Tensor) -> Array:
    """Returns an array that shares the output's memory, with the dtype that `layout_of` gives."""
    array: Array = (output.view(torch.uint16) if output.dtype == torch.bfloat16 else output).numpy()
    return array


def as_tensor(array: Array) -> Tensor:
    """Returns a tensor of the original dtype that shares the memory of an array from `as_array`."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
