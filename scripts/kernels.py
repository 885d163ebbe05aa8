"""Times and bit checks of different kernels for the Nature CNN's layers, on this processor.

    python -m scripts.kernels                 # with all instructions of the processor
    python -m scripts.kernels --isa avx2      # as if it had no instructions beyond AVX2

One thread computes each layer in one or more equivalent ways, called kernels. It computes the
forward pass with an actor's batch sizes, and the gradient (forward and backward pass) with the
learner's batch sizes. The table shows microseconds per row. Three checks test that each row of a
forward pass keeps its bits: at another position and among other rows of the batch, at another
address of the batch in memory, and while another thread computes. Actors put requests into rows in
order of arrival. If a row's bits depend on its position, a run gives every column a fixed row
instead.

`--isa` limits torch, oneDNN and MKL through their environment variables. MKL ignores its variable
on processors that Intel did not make.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from htsrl_cli.machine import has_bf16
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.networks.nature_cnn.network import join_columns
from scripts.provenance import result_path, write_result
from scripts.reference.markdown import table

# The environment variables that limit each library to an instruction set.
LIMITS = {
    "sse4": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}
FORWARD_ROWS = (8, 16, 32)
GRADIENT_ROWS = (64, 128, 256)
# Minimum seconds of a measurement.
SECONDS = 0.4
ROUNDS = 3

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A layer and the different ways to compute it.

    Attributes:
        name: name of the layer.
        x_shape: shape of the layer's input, without the axis of rows.
        weight_shape: shape of the layer's weight.
        kernels: equivalent functions of input and weight, by name.
        differentiates_x: True if the gradient with respect to the input is needed.
    """

    name: str
    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    kernels: Mapping[str, Kernel]
    differentiates_x: bool = True


def _plain(stride: int) -> Kernel:
    return lambda x, weight: F.conv2d(x, weight, stride=stride)


def _joined(stride: int) -> Kernel:
    return lambda x, weight: F.conv2d(
        join_columns(x, stride), join_columns(weight, stride), stride=(stride, 1)
    )


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


def _one_pixel(x: Tensor, weight: Tensor) -> Tensor:
    images, kernels = (
        values[:, :, None, None].to(memory_format=torch.channels_last) for values in (x, weight)
    )
    return F.conv2d(images, kernels).flatten(1)


def _whole_image(x: Tensor, weight: Tensor) -> Tensor:
    images, kernels = (v.view(-1, 7, 7, 64).permute(0, 3, 1, 2) for v in (x, weight))
    return F.conv2d(images, kernels).flatten(1)


CASES = (
    Case(
        "convolution 1",
        (4, 84, 84),
        (32, 4, 8, 8),
        {"plain": _plain(4), "joined columns": _joined(4)},
        differentiates_x=False,
    ),
    Case(
        "convolution 2",
        (32, 20, 20),
        (64, 32, 4, 4),
        {"plain": _plain(2), "joined columns": _joined(2)},
    ),
    Case("convolution 3", (64, 9, 9), (64, 64, 3, 3), {"plain": _plain(1)}),
    Case(
        "fully connected",
        (3136,),
        (512, 3136),
        {
            "product": _product,
            "1 x 1 convolution": _one_pixel,
            "7 x 7 convolution": _whole_image,
        },
    ),
)


@dataclass(frozen=True)
class Timing:
    """The time that a kernel takes, and the result of its checks.

    Attributes:
        work: `forward` or `gradient`.
        microseconds: time per row. Every round gives a median time; this is the lowest of them.
        is_row_free: True if the kernel passes the checks of the function `is_row_free`; None for
            gradients.
    """

    layer: str
    kernel: str
    precision: str
    work: str
    rows: int
    microseconds: float
    is_row_free: bool | None


def _tensor(rows: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, *shape, generator=rng).to(dtype)
    return values.to(memory_format=torch.channels_last) if values.dim() == 4 else values


def _microseconds(work: Callable[[], Any], rows: int) -> float:
    """Returns the median time of a call of `work`, in microseconds, divided by `rows`.

    The calls are repeated for at least `SECONDS` seconds, and at least three times.
    """
    work()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end or len(times) < 3:
        work()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times) / rows


def is_row_free(kernel: Kernel, x: Tensor, weight: Tensor) -> bool:
    """Returns True if every bit of a row's result depends only on the row and the weight."""
    expected = kernel(x, weight).clone()
    results = []
    # Half of the rows are the same, but at other positions. The other half has other values.
    shift = len(x) // 2 + 1
    changed = x.roll(shift, 0)
    changed[shift % 2 :: 2] = -changed[shift % 2 :: 2]
    kept = slice(1 - shift % 2, None, 2)
    results.append((kernel(changed, weight)[kept], expected.roll(shift, 0)[kept]))
    # The same rows, at an address that is 4 bytes higher.
    room = torch.empty(x.numel() + 16, dtype=x.dtype)
    moved = room[4 // x.element_size() :].as_strided(x.shape, x.stride())
    results.append((kernel(moved.copy_(x), weight), expected))
    # The same rows, while another thread computes as well.
    # A new thread may use all cores until it sets its own number of threads.
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        both = [pool.submit(kernel, x, weight) for _ in range(2)]
        results += [(each.result(), expected) for each in both]
    return all(torch.equal(result, reference) for result, reference in results)


def measure(case: Case, precision: str, dtype: torch.dtype) -> list[Timing]:
    """Times and checks all kernels of a layer at one precision."""
    weight = _tensor(case.weight_shape[0], case.weight_shape[1:], dtype, 0) * 0.05
    found: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for rows in FORWARD_ROWS:
            x = _tensor(rows, case.x_shape, dtype, rows)
            for name, kernel in case.kernels.items():
                with torch.inference_mode():
                    took = _microseconds(lambda k=kernel, x=x: k(x, weight), rows)  # type: ignore[misc]
                found.setdefault((name, "forward", rows), []).append(took)
        for rows in GRADIENT_ROWS:
            x = _tensor(rows, case.x_shape, dtype, rows)
            for name, kernel in case.kernels.items():
                took = _microseconds(_gradient(kernel, x, weight, case.differentiates_x), rows)
                found.setdefault((name, "gradient", rows), []).append(took)
    return [
        Timing(
            case.name,
            name,
            precision,
            work,
            rows,
            min(times),
            is_row_free(case.kernels[name], _tensor(rows, case.x_shape, dtype, 1), weight)
            if work == "forward"
            else None,
        )
        for (name, work, rows), times in found.items()
    ]


def _gradient(
    kernel: Kernel, x: Tensor, weight: Tensor, differentiates_x: bool
) -> Callable[[], object]:
    x = x.detach().requires_grad_(differentiates_x)
    weight = weight.detach().requires_grad_()
    wanted = [x, weight] if differentiates_x else [weight]
    grad = torch.ones_like(kernel(x, weight))
    return lambda: torch.autograd.grad(kernel(x, weight), wanted, grad)


def timings_table(timings: list[Timing]) -> str:
    """Returns a Markdown table: a row for each combination of layer, precision and kernel."""
    sizes = [("forward", n) for n in FORWARD_ROWS] + [("gradient", n) for n in GRADIENT_ROWS]
    rows = []
    for key in dict.fromkeys((t.layer, t.precision, t.kernel) for t in timings):
        own = {(t.work, t.rows): t for t in timings if (t.layer, t.precision, t.kernel) == key}
        bound = [str(n) for n in FORWARD_ROWS if not own["forward", n].is_row_free]
        free = f"not with {', '.join(bound)}" if bound else "yes"
        times = [f"{own[size].microseconds:.1f}" for size in sizes]
        rows.append((*key, *times, free))
    header = ("layer", "precision", "kernel", *(f"{w} {n}" for w, n in sizes), "rows free")
    return table(header, rows)


def main() -> None:
    """Measures all layers, prints the table, and writes the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", choices=list(LIMITS), help="the highest instruction set to use")
    isa = parser.parse_args().isa
    if isa and any(os.environ.get(name) != value for name, value in LIMITS[isa].items()):
        # The libraries read their variables when they are loaded, so the script starts again.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | LIMITS[isa])
    set_up_torch()
    dtypes = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if has_bf16() else {})
    timings = [
        timing
        for case in CASES
        for precision, dtype in dtypes.items()
        for timing in measure(case, precision, dtype)
    ]
    print(timings_table(timings))
    name = f"kernels_{isa}" if isa else "kernels"
    write_result(result_path(name), {"limit": isa, "timings": [asdict(t) for t in timings]})


if __name__ == "__main__":
    main()
