"""The tiles that kernels keep as constants of their files: each neighbour's time where the kernel is launched.

A constant is a dictionary with ``num_warps`` at the top of a file of ``kernels/``. Its neighbours halve, keep or double
each of its sizes. What is measured is the time of all kernels of one training step of the quantizer, or of the file's
own problem (``PROBLEMS``), by ``torch.profiler``; a neighbour that changes a code, or a number by more than rounding,
is left out. The winner is printed: a person writes it down.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

KERNELS = Path(__file__).parents[1] / "kernels"
FLAGS = {"enable_fp_fusion", "num_stages"}
MOST_WARPS = 16


class Variant(NamedTuple):
    """A constant, by file and name, and values for it."""

    file: str
    name: str
    values: dict[str, int]


def constants() -> dict[tuple[str, str], dict[str, int]]:
    """Every constant: its values, by file and name."""
    found = {}
    for path in sorted(KERNELS.glob("[a-z]*.py")):
        module = importlib.import_module(f"dqcore.kernels.{path.stem}")
        for name, value in vars(module).items():
            # an imported one belongs to the file that defines it
            if type(value) is dict and "num_warps" in value and f"\n{name} = {{" in path.read_text():
                found[path.stem, name] = value
    return found


def variants() -> list[Variant]:
    """Every constant as it is, and its neighbours."""
    found = []
    for (file, name), values in constants().items():
        axes = [key for key, value in values.items() if key not in FLAGS and value & (value - 1) == 0]
        for factors in itertools.product((1, 0.5, 2), repeat=len(axes)):
            near = values | {key: int(values[key] * factor) for key, factor in zip(axes, factors, strict=True)}
            if 1 <= near["num_warps"] <= MOST_WARPS and min(near[key] for key in axes) >= 1:
                found.append(Variant(file, name, near))
    return found


@contextlib.contextmanager
def applied(variant: Variant) -> Iterator[None]:
    """Launch with these values; kernels read the dictionary at each launch that is not made again."""
    from dqcore.kernels import replay

    constant = getattr(importlib.import_module(f"dqcore.kernels.{variant.file}"), variant.name)
    before = dict(constant)
    constant.update(variant.values)
    replay.forget()
    try:
        yield
    finally:
        replay.forget()
        constant.clear()
        constant.update(before)


Step = Callable[[], list[torch.Tensor]]


def problem(file: str, device: str, tiny: bool) -> Step:
    """What launches the kernels of a file, on the same data in every call: what it returns is compared."""
    return PROBLEMS.get(file, _training)(device, tiny)


def _training(device: str, tiny: bool) -> Step:
    """A training step of the quantizer."""
    import dqcore

    torch.manual_seed(0)
    images, dim, side, size = (2, 16, 2, 20) if tiny else (32, 256, 16, 1024)
    maps = [torch.randn(images, dim, side << g, side << g, device=device, requires_grad=True) for g in range(2)]
    grain = torch.randint(0, 2, (images, side, side), device=device)
    quantizer = dqcore.DynamicQuantizer(dim, size, num_granularities=2).to(device)
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    grad = torch.randn(images, dim, 2 * side, 2 * side, device=device)

    def step() -> list[torch.Tensor]:
        quantizer.load_state_dict(state)
        out = quantizer(maps, grain)
        grads = torch.autograd.grad([out.map, out.loss], maps, [grad, None])
        sums = [value.clone() for value in quantizer.state_dict().values()]
        return [out.codes, out.map.detach(), out.loss.detach(), *grads, *sums]

    return step


def _linear_gelu(device: str, tiny: bool) -> Step:
    """The rows of a sampling step of the base model."""
    from dqcore.ops import linear_gelu

    torch.manual_seed(0)
    rows, channels, columns = (3, 16, 32) if tiny else (128, 1024, 4096)
    shapes = ((rows, channels), (columns, channels), (columns,))
    given = [torch.randn(shape, device=device).bfloat16() for shape in shapes]
    return lambda: [linear_gelu(*given)]


def _draw_vectors(device: str, tiny: bool) -> Step:
    """A part of a batch, after another."""
    from dqcore.ops.draw_vectors import draw_vectors

    torch.manual_seed(0)
    images, dim, side, number = (2, 16, 2, 20) if tiny else (32, 256, 16, 1024)
    maps = [torch.randn(images, dim, side << g, side << g, device=device) for g in range(2)]
    grain = torch.randint(0, 2, (images, side, side), device=device)
    codes = torch.randint(0, number, (images, 2 * side, 2 * side), device=device)
    given = maps, grain, codes, torch.rand(codes.shape, device=device), torch.tensor(5, device=device), number

    def step() -> list[torch.Tensor]:
        return list(draw_vectors(*given, before=codes.numel(), pool=draw_vectors(*given)))

    return step


def _dynamic_lookup_backward(device: str, tiny: bool) -> Step:
    """Of planes whose lines are whole sectors, and of others."""
    from dqcore.ops import dynamic_lookup

    torch.manual_seed(0)
    (images, dim, number), sides = ((1, 16, 20), (4, 3)) if tiny else ((32, 256, 1024), (16, 14))
    passes = []
    for side in sides:
        maps = [torch.randn(images, dim, side << g, side << g, device=device, requires_grad=True) for g in range(2)]
        grain = torch.randint(0, 2, (images, side, side), device=device)
        out = dynamic_lookup(maps, grain, torch.randn(number, dim, device=device))
        passes.append(([out.quantized, out.error], maps, [torch.randn_like(out.quantized), torch.rand_like(out.error)]))
    return lambda: [gradient for given in passes for gradient in torch.autograd.grad(*given, retain_graph=True)]


#: For files whose kernels a training step of the quantizer does not launch, or not with all their constants.
PROBLEMS: dict[str, Callable[[str, bool], Step]] = {
    "linear_gelu": _linear_gelu,
    "draw_vectors": _draw_vectors,
    "dynamic_lookup_backward": _dynamic_lookup_backward,
}


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Whole numbers equal, others within 1e-4 of the largest, in half precision within 1e-2."""
    for a, b in zip(found, expected, strict=True):
        share = 0 if not b.is_floating_point() else 1e-4 if b.dtype == torch.float32 else 1e-2
        near = float((a.double() - b.double()).abs().max()) <= share * float(b.abs().max())
        if not near:
            return False
    return True


def build(variant: Variant, device: str, tiny: bool) -> str | None:
    """Run its problem once in a process of its own, which compiles it; why it cannot be run."""
    try:
        with applied(variant):
            problem(variant.file, device, tiny)()
            if device == "cuda":
                torch.cuda.synchronize()
    except Exception as error:  # too much shared memory, say
        return f"{type(error).__name__}: {str(error).strip()[:200]}"
    return None


def compile_all(found: list[Variant], device: str, tiny: bool) -> list[str | None]:
    """:func:`build` of each, in parallel."""
    if device != "cuda":
        return [None] * len(found)  # interpreted kernels are not compiled
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), context) as pool:
        return list(pool.map(build, found, [device] * len(found), [tiny] * len(found), chunksize=4))


def sweep(device: str, seconds: float, tiny: bool = False) -> list[dict[str, Any]]:
    """A row for each variant: microseconds of a step's kernels, or why it was left out; the fastest of each printed."""
    from report_kernels import table

    end = time.monotonic() + seconds
    every = variants()[: 2 if tiny else None]
    faults = compile_all(every, device, tiny)
    steps = {file: problem(file, device, tiny) for file in dict.fromkeys(variant.file for variant in every)}
    expected = {file: step() for file, step in steps.items()}
    rows: list[dict[str, Any]] = []
    for variant, fault in zip(every, faults, strict=True):
        row: dict[str, Any] = {"file": variant.file, "constant": variant.name, "values": variant.values}
        rows.append(row)
        if fault or time.monotonic() > end:
            row["left_out"] = fault or "no time left"
            continue
        try:
            step = steps[variant.file]
            with applied(variant):
                if not same(step(), expected[variant.file]):
                    row["left_out"] = "another result"
                    continue
                row["us"] = table(step, 1, device)["us"]
        except Exception as error:  # Triton's OutOfResources is no RuntimeError
            row["left_out"] = f"{type(error).__name__}: {str(error).strip()[:200]}"
    for file, name in constants():
        show([row for row in rows if (row["file"], row["constant"]) == (file, name)])
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The constant as it is, which comes first, and the three fastest."""
    good = sorted((row for row in rows if "us" in row), key=lambda row: row["us"])
    if good:
        first = rows[0]
        print(f"{first['file']}.{first['constant']}: {first.get('us')} us as it is, {first['values']}")
        for row in good[:3]:
            print(f"  {row['us']} us {row['values']}")
