"""What ``compile_check.py`` compiles of attention: forward, both backward kernels and decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dqcore.kernels import decode_attention, varlen_attention, varlen_attention_backward
from dqcore.kernels.setting import Setting

KEEP = 230  # of 256: dropout 0.1
FULL = (90,)  # where training without dropout and all narrow caches are compiled too


def cases(arch: int) -> Iterator[Callable[[], Any]]:
    """Launches at the head sizes of the paper's transformers, at the widest, and at one that tiles do not fit."""
    half, single = torch.bfloat16, torch.float32
    sizes = [(64, half), (128, half), (256, half), (64, single), (128, single)]
    for dim, dtype in sizes:
        for keep in (256, KEEP) if arch in FULL else (KEEP,):
            yield lambda dim=dim, dtype=dtype, keep=keep: _train(dim, dtype, keep)
        narrower = (half, torch.int8) if dtype == single else (torch.int8,)
        for kept in (dtype, *(narrower if dim == 64 or arch in FULL else ())):
            yield lambda dim=dim, dtype=dtype, kept=kept: _decode(64, dim, dtype, kept)
    for dim in (64, 128):
        yield lambda dim=dim: _train(dim, single, KEEP, "tf32x3")
    yield lambda: _train(80, torch.float16, KEEP)
    capped = ((64, half), (128, half), (256, half), (64, single))
    for dim, dtype in capped:  # windows and prefixes, which take more registers
        yield lambda dim=dim, dtype=dtype: _train(dim, dtype, KEEP, "tf32x3" if dtype == single else "ieee", 64)
    yield lambda: _decode(64, 256, single, single)
    for kept in (half, torch.int8):
        yield lambda kept=kept: _decode(2, 64, half, kept)


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _train(dim: int, dtype: torch.dtype, keep: int, precision: str = "ieee", window: int = -1) -> None:
    q, k, v = _empty(16000, 3, 16, dim, dtype=dtype).unbind(1)
    cu_seqlens = _empty(33, dtype=torch.int32)
    seed = _empty(2, dtype=torch.int64) if keep < 256 else None
    prefixes, right = (None, 0) if window < 0 else (cu_seqlens[1:], window)
    setting = Setting(cu_seqlens, cu_seqlens, prefixes, seed, window, right, dim**-0.5, keep, precision)
    out, lse = varlen_attention.varlen_attention_fwd(q, k, v, setting)
    varlen_attention_backward.varlen_attention_bwd(out, q, k, v, out, lse, setting)


def _decode(batch: int, dim: int, dtype: torch.dtype, kept: torch.dtype) -> None:
    q, k, v = _empty(batch, 1, 3, 16, dim, dtype=dtype).unbind(2)
    cache = _empty(2, batch, 1024, 16, dim, dtype=kept)
    scales = _empty(2, batch, 16, 1024, dtype=torch.float32).mT if kept == torch.int8 else (None, None)
    lengths, active = _empty(batch, dtype=torch.int32), _empty(batch, dtype=torch.bool)
    decode_attention.decode_attention_fwd(q, k, v, *cache, lengths, active, dim**-0.5, "ieee", *scales)
