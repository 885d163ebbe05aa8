"""A pretended GPU for machines without one: tensors that claim device `gpu:0` but use CPU memory.

    python -m tests.pretend_gpu train env=... learner.device=cuda actors.device=cuda

runs `htsrl` with this device wherever the configuration names CUDA. As on a GPU, an operation
raises an error if it mixes tensors of both devices, if it makes a NumPy array of a GPU tensor, or
if torch has no deterministic implementation of it on CUDA. CPU kernels compute everything, so this
tests neither speed nor streams nor the bits of a real GPU.

The device is of torch's PrivateUse1 backend, which is made for such devices. A process cannot
unregister it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import rnn
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from htsrl_cli.bench import microbenchmarks
from htsrl_cli.cli.main import main
from htsrl_cli.runners import provenance, wiring
from htsrl_cli.sampling import inference

# The operations without a deterministic implementation that a trainer might call, see
# `torch.use_deterministic_algorithms`.
REFUSED = {"cumsum", "histc", "put_", "bincount", "median", "nll_loss_forward"}
# Operations that copy between devices.
COPIES = {"_to_copy", "copy_", "_foreach_copy_"}
_KERNELS = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]


class GpuTensor(Tensor):
    """A tensor that claims to be on `gpu:0`; `held` has its data on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> GpuTensor:
        tensor: GpuTensor = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("gpu:0"),
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Views of wrappers made in inference mode are not possible.
        with torch.inference_mode(False), torch.no_grad():
            return _run(func, tuple(args), kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operation with at least one `GpuTensor` among its arguments."""
    name = func.name()
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
        return func.decompose(*args, **kwargs)
    plain = name.removeprefix("aten::").partition(".")[0]
    _check(plain, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
    target = kwargs.get("device")
    held_args, held_kwargs = tree_map_only(GpuTensor, lambda tensor: tensor.held, (args, kwargs))
    if target is not None:
        held_kwargs["device"] = torch.device("cpu")
    result = func(*held_args, **held_kwargs)
    if target is not None and torch.device(target).type == "cpu":
        return result
    if plain in COPIES and not isinstance(tree_leaves(args[0])[0], GpuTensor):
        return args[0]
    wrapped = tree_map_only(Tensor, GpuTensor, result)
    return return_and_correct_aliasing(  # type: ignore[no-untyped-call]
        func, args, kwargs, wrapped
    )


def _check(plain: str, tensors: list[Tensor]) -> None:
    deterministic = torch.are_deterministic_algorithms_enabled()
    if plain in REFUSED and deterministic and tensors[0].is_floating_point():
        raise RuntimeError(f"{plain} has no deterministic implementation on a GPU")
    # Scalars may come from the CPU.
    if plain not in COPIES and not all(isinstance(t, GpuTensor) or t.ndim == 0 for t in tensors):
        raise RuntimeError(f"{plain}: tensors of gpu:0 and of the CPU")


def _empty(size: Sequence[int], *, memory_format: Any = None, **kwargs: Any) -> Tensor:
    return GpuTensor(torch.empty(size, dtype=kwargs.get("dtype"), memory_format=memory_format))


def _empty_strided(size: Sequence[int], stride: Sequence[int], **kwargs: Any) -> Tensor:
    return GpuTensor(torch.empty_strided(size, stride, dtype=kwargs.get("dtype")))


class _Cells:
    """The recurrent cells as the CPU computes them: torch would take a GPU's fused kernels."""

    @staticmethod
    def lstm_cell(
        x: Tensor, state: tuple[Tensor, Tensor], *weights_and_biases: Tensor
    ) -> tuple[Tensor, Tensor]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights_and_biases
        h, c = state
        gates = F.linear(h, weight_hh, bias_hh) + F.linear(x, weight_ih, bias_ih)
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    @staticmethod
    def gru_cell(x: Tensor, h: Tensor, *weights_and_biases: Tensor) -> Tensor:
        weight_ih, weight_hh, bias_ih, bias_hh = weights_and_biases
        of_x = F.linear(x, weight_ih, bias_ih).chunk(3, 1)
        of_h = F.linear(h, weight_hh, bias_hh).chunk(3, 1)
        r, z = ((of_h[k] + of_x[k]).sigmoid() for k in range(2))
        n = (of_x[2] + of_h[2] * r).tanh()
        return (h - n) * z + n


def set_up() -> torch.device:
    """Registers the device and returns it; call it before the process's first backward pass."""
    _setup_privateuseone_for_python_backend("gpu")
    _KERNELS.impl("empty.memory_format", _empty, "PrivateUse1")  # type: ignore[no-untyped-call]
    _KERNELS.impl("empty_strided", _empty_strided, "PrivateUse1")  # type: ignore[no-untyped-call]
    vars(rnn)["_VF"] = _Cells
    # Otherwise `Module.to` would put new data into old wrappers.
    torch.__future__.set_swap_module_params_on_conversion(True)
    return torch.device("gpu:0")


def htsrl(words: list[str]) -> int:
    """Runs `htsrl WORDS` with this device for every CUDA device in the configuration."""
    gpu = set_up()

    def resolve_device(key: str, name: str) -> torch.device:
        return gpu if name.startswith("cuda") else torch.device(name)

    modules = (wiring, inference, provenance, microbenchmarks)
    patches = [patch.object(module, "resolve_device", resolve_device) for module in modules]
    for change in patches:
        change.start()
    return main(words)


def leave(status: int) -> NoReturn:
    """Ends the process without the interpreter's shutdown.

    Torch's thread for backward passes on this device sometimes crashes in a shutdown: "terminate
    called without an active exception".
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(htsrl(sys.argv[1:]))
