"""What ``compile_check.py`` compiles of a transformer beside its attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dqcore.kernels import add_layer_norm, bias_gelu, linear_gelu

KEEP = 230  # of 256: dropout 0.1
ROWS = 16000
FULL = (90,)  # where more than these are compiled


def cases(arch: int) -> Iterator[Callable[[], Any]]:
    """Launches of the paper's transformers under autocast, and the widest; for one target also other sizes."""
    half, single = torch.bfloat16, torch.float32
    for channels in (1024, add_layer_norm.MOST_CHANNELS):
        yield lambda channels=channels: _train(channels, single, half, half, KEEP)
    yield lambda: _activate(4096, half, single)
    yield lambda: linear_gelu.linear_gelu_fwd(*_linear(128, 1024, 4096, half))
    if arch not in FULL:
        return
    yield lambda: _train(256, single, half, half, KEEP)
    yield lambda: _train(1024, half, half, half, 256)
    yield lambda: _train(1024, single, single, single, KEEP)
    for dtype in (half, single):
        yield lambda dtype=dtype: _activate(4096, dtype, dtype)
    yield lambda: linear_gelu.linear_gelu_fwd(*_linear(128, 1024, 4096, torch.float16))


def _train(channels: int, x: torch.dtype, branch: torch.dtype, normed: torch.dtype, keep: int) -> None:
    values, added = (torch.empty(ROWS, channels, dtype=dtype, device="meta") for dtype in (x, branch))
    weight, bias = (torch.empty(channels, dtype=torch.float32 if keep < 256 else x, device="meta") for _ in range(2))
    seed = torch.empty(2, dtype=torch.int64, device="meta") if keep < 256 else None
    total, out, statistics = add_layer_norm.add_layer_norm_fwd(values, added, weight, bias, seed, keep, 1e-5, normed)
    add_layer_norm.add_layer_norm_bwd(total, out, total, statistics, weight, seed, keep, x, branch)


def _activate(channels: int, dtype: torch.dtype, offset: torch.dtype) -> None:
    x, bias = (
        torch.empty(ROWS, channels, dtype=dtype, device="meta"),
        torch.empty(channels, dtype=offset, device="meta"),
    )
    bias_gelu.bias_gelu_bwd(bias_gelu.bias_gelu_fwd(x, bias), x, bias)


def _linear(rows: int, channels: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    shapes = ((rows, channels), (columns, channels), (columns,))
    return tuple(torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
