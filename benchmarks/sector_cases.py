"""What ``compile_sectors.py`` launches, and how the interpreter's loads and stores are noted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGES, DIM, CODES, SIDE = 1, 256, 256, 16
FORMATS = {"NCHW": "contiguous_format", "channels-last": "channels_last"}
DTYPES = ("float32", "bfloat16")
UNEVEN = (14, 18)  # regions of a line, so that a line of cells is no whole number of sectors


def problem(form: str, dtype: str, device: str, side: int = SIDE) -> Any:
    """Maps, grain map and codebook of a lookup with two granularities, half of the regions fine."""
    import torch

    memory, kind = getattr(torch, FORMATS[form]), getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator).to(kind)
        return (values.to(memory_format=memory) if len(shape) == 4 else values).to(device)

    maps = [normal(IMAGES, DIM, side << g, side << g) for g in range(2)]
    fine = torch.rand(IMAGES, side**2, generator=generator).argsort(1) < side**2 // 2
    grain = fine.long().view(IMAGES, side, side).to(device)
    return maps, grain, torch.randn(CODES, DIM, generator=generator).to(device)


def cases(device: str) -> dict[str, Callable[[], Any]]:
    """Launches by name; each returns its codebook, and its results, so that their memory stays theirs."""
    found: dict[str, Callable[[], Any]] = {}
    for form in FORMATS:
        for dtype in DTYPES:
            found[f"dynamic_lookup {form} {dtype}"] = lambda f=form, d=dtype: lookup(f, d, device)
            found[f"dynamic_lookup_backward {form} {dtype}"] = lambda f=form, d=dtype: backward(f, d, device)
    for side in UNEVEN:
        name = f"NCHW bfloat16 {side} x {side}"
        found[f"dynamic_lookup_backward {name}"] = lambda s=side: backward("NCHW", "bfloat16", device, s)
    found["dynamic_lookup NCHW bfloat16 14 x 14"] = lambda: lookup("NCHW", "bfloat16", device, 14)
    for dtype in DTYPES:
        found[f"code_sums {dtype}"] = lambda d=dtype: sums(d, device)
    return found


def lookup(form: str, dtype: str, device: str, side: int = SIDE) -> Any:
    """Forward, without statistics; returns the codebook."""
    from dqcore.kernels.dynamic_lookup import dynamic_lookup_fwd

    maps, grain, codebook = problem(form, dtype, device, side)
    return codebook, dynamic_lookup_fwd(maps, grain, codebook, False)


def backward(form: str, dtype: str, device: str, side: int = SIDE) -> Any:
    """Both gradients."""
    import torch

    from dqcore.kernels.dynamic_lookup_backward import dynamic_lookup_bwd

    maps, grain, codebook = problem(form, dtype, device, side)
    quantized, grad_quantized = torch.ones_like(maps[-1]), torch.ones_like(maps[-1])
    codes = torch.zeros(IMAGES, 2 * side, 2 * side, dtype=torch.int64, device=device)
    grad_error = torch.ones(codes.shape, device=device)
    return codebook, dynamic_lookup_bwd(maps, grain, codes, quantized, grad_quantized, grad_error)


def sums(dtype: str, device: str) -> Any:
    """Rows with a code each; of two codes, so that there are whole runs of one."""
    import torch

    from dqcore.kernels.code_sums import code_sums_fwd

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, DIM, generator=generator).to(getattr(torch, dtype)).to(device)
    codes = torch.randint(0, 2, (2048,), generator=generator).to(device)
    return torch.empty(0), code_sums_fwd(x, codes, 2)


def watch() -> list[list[tuple]]:
    """From here on every load and store of an interpreted kernel is noted, a list for each launch."""
    import quick_interpreter
    import triton.runtime.interpreter as interpreter

    quick_interpreter.quicken()
    launches: list[list[tuple]] = []
    builder, run = interpreter.InterpreterBuilder, interpreter.GridExecutor.__call__
    load, store = builder.create_masked_load, builder.create_masked_store

    def note(ptrs: Any, mask: Any) -> None:
        if ptrs.data.size > 1:
            size = ptrs.get_element_ty().primitive_bitwidth // 8
            launches[-1].append((place(), ptrs.data.copy(), mask.data.copy(), size))

    def noted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        note(ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def noted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    def launch(self: Any, *args: Any, **options: Any) -> Any:
        launches.append([])
        return run(self, *args, **options)

    builder.create_masked_load, builder.create_masked_store = noted_load, noted_store
    builder.create_store = lambda self, ptr, val, *rest: noted_store(
        self, ptr, val, interpreter.TensorHandle(interpreter.np.ones_like(ptr.data, dtype=bool), interpreter.tl.int1),
        *rest,
    )  # fmt: skip
    interpreter.GridExecutor.__call__ = launch
    return launches


def place() -> tuple:
    """Lines of the kernels' sources that led here, from within outwards."""
    from sectors import first_line

    frame, found = sys._getframe(2), []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent.name == "kernels":
            found.append((path.name, frame.f_lineno, frame.f_code.co_name))
            if found[-1][2].endswith("_kernel"):
                break
        frame = frame.f_back
    return tuple((name, first_line(name, line)) for name, line, _ in found)
