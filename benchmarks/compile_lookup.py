"""What ``compile_check.py`` compiles of lookup, statistics, losses and patch entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dqcore.kernels import (
    code_sums,
    codebook_update,
    cross_entropy,
    draw_vectors,
    dynamic_lookup,
    dynamic_lookup_backward,
    lookup_loss,
    nearest_code,
    patch_entropy,
)
from dqcore.ops.reference.patch_entropy import GREY, NO_MASS


def cases(arch: int) -> Iterator[Callable[[], Any]]:
    """Launches at the sizes of the paper's models, and at the smallest and largest numbers of channels."""
    for dim in (8, 256, 257):
        yield lambda dim=dim: _nearest(dim, torch.float32)
    yield lambda: _nearest(8, torch.bfloat16)
    yield lambda: _nearest(256, torch.bfloat16)
    yield lambda: _nearest(256, torch.float16)
    yield lambda: _nearest(256, torch.float32, "fast")
    yield lambda: code_sums.code_sums_fwd(_empty(8192, 256), _empty(8192, dtype=torch.int64), 1024)
    for dtype, num_granularities in ((torch.float32, 2), (torch.bfloat16, 3)):
        for memory in (torch.contiguous_format, torch.channels_last):
            yield lambda dtype=dtype, num=num_granularities, memory=memory: _lookup(num, dtype, memory)
    for num_granularities, side in ((1, 20), (2, 7), (2, 14), (2, 50), (3, 18)):
        yield lambda num=num_granularities, side=side: _uneven_backward(num, side, torch.bfloat16)
    for dim, threshold, averages in ((256, None, True), (8, 0.03, True), (256, 0.03, True), (256, 0.03, False)):
        yield lambda given=(dim, threshold, averages): _update(*given)
    for dim in (8, 256):
        yield lambda dim=dim: _drawn(dim)
    for side in (32, 512):
        yield lambda side=side: lookup_loss.lookup_loss_fwd(
            _empty(8, side, side), _empty(8, side, side, dtype=torch.int64), 256, 0.25
        )
    for contents, dtype in ((1027, torch.bfloat16), (1024, torch.bfloat16), (1027, torch.float32)):
        yield lambda contents=contents, dtype=dtype: _cross_entropy(contents, dtype)
    for patch in (8, 16):
        yield lambda patch=patch: patch_entropy.patch_entropy_fwd(
            _empty(8, 3, 256, 256), patch, -1.0, 1.0, 32, 0.01, GREY, NO_MASS
        )


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _cross_entropy(contents: int, dtype: torch.dtype) -> None:
    logits, targets = _empty(16000, contents, dtype=dtype), _empty(16000, dtype=torch.int64)
    losses, lse = cross_entropy.cross_entropy_fwd(logits, targets)
    cross_entropy.cross_entropy_bwd(losses, logits, targets, lse)


def _nearest(dim: int, dtype: torch.dtype, precision: str = "exact") -> None:
    nearest_code.nearest_code_fwd(_empty(8, dim, 32, 32, dtype=dtype), _empty(1024, dim, dtype=dtype), precision)


def _lookup(num_granularities: int, dtype: torch.dtype, memory: torch.memory_format) -> None:
    maps = [_empty(8, 256, 16 * 2**g, 16 * 2**g, dtype=dtype) for g in range(num_granularities)]
    maps = [values.contiguous(memory_format=memory) for values in maps]
    grain, codebook = _empty(8, 16, 16, dtype=torch.int64), _empty(1024, 256)
    dynamic_lookup.dynamic_lookup_fwd(maps, grain, codebook, True)
    codes = _empty(8, *maps[-1].shape[2:], dtype=torch.int64)
    dynamic_lookup_backward.dynamic_lookup_bwd(maps, grain, codes, maps[-1], maps[-1], maps[-1][:, 0])


def _uneven_backward(num_granularities: int, side: int, dtype: torch.dtype) -> None:
    """Planes whose lines are no whole number of sectors."""
    maps = [_empty(8, 256, side << g, side << g, dtype=dtype) for g in range(num_granularities)]
    grain, codes = _empty(8, side, side, dtype=torch.int64), _empty(8, *maps[-1].shape[2:], dtype=torch.int64)
    dynamic_lookup_backward.dynamic_lookup_bwd(maps, grain, codes, maps[-1], maps[-1], maps[-1][:, 0])


def _update(dim: int, threshold: float | None, averages: bool) -> None:
    maps = [_empty(8, dim, 16 * 2**g, 16 * 2**g) for g in range(2)]
    sums = _empty(1024, dim) if averages else None
    state = (_empty(1025, dim), _empty(1024), _empty(1024, dtype=torch.int64), sums)
    grain, codes = _empty(8, 16, 16, dtype=torch.int64), _empty(8, 32, 32, dtype=torch.int64)
    given = ((_empty(1024), _empty(1024, dim)), maps, grain, codes, _empty(8, 32, 32))
    codebook_update.codebook_update_fwd(state, *given, (0.99, 1e-5, threshold))


def _drawn(dim: int) -> None:
    """A batch in two parts on one of several processes: what each part draws, and what the update makes of it."""
    maps = [_empty(8, dim, 16 * 2**g, 16 * 2**g) for g in range(2)]
    grain, codes, error = _empty(8, 16, 16, dtype=torch.int64), _empty(8, 32, 32, dtype=torch.int64), _empty(8, 32, 32)
    seed, earlier, pool = _empty(1, dtype=torch.int64), _empty(1, dtype=torch.int64), ()
    for before, more in ((0, None), (8192, None), (0, earlier)):
        pool = draw_vectors.draw_vectors_fwd(maps, grain, codes, error, seed, more, pool, before, 1024)
    state = (_empty(1025, dim), _empty(1024), _empty(1024, dtype=torch.int64), _empty(1024, dim))
    key, vectors, distance = (values.view(1024, -1, 1, 1) for values in pool)
    given = ((_empty(1024), _empty(1024, dim)), [vectors], None, None, distance[:, 0], (0.99, 1e-5, 1e-3))
    codebook_update.codebook_update_fwd(state, *given, key[:, 0])
