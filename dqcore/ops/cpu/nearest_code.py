"""The nearest code of each vector on the CPU, a block of vectors at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dqcore.ops.cpu.code_search import code_search

__all__ = ["VECTORS", "nearest_code_cpu"]

VECTORS = 2**21  # elements of a block of vectors: 8 MB


def nearest_code_cpu(x: Tensor, codebook: Tensor, precision: str) -> Tensor:
    """:func:`dqcore.ops.nearest_code` for float16, bfloat16 and float32 on the CPU."""
    search = code_search(codebook, precision)
    blocks = [search(vectors) for vectors in _vector_blocks(x)]
    codes = blocks[0] if len(blocks) == 1 else torch.cat([torch.zeros(0, dtype=torch.int64), *blocks])
    return codes.view(x.shape[:1] if x.dim() == 2 else (x.shape[0], *x.shape[2:]))


def _vector_blocks(x: Tensor) -> Iterator[Tensor]:
    """The vectors of ``x`` in order, as ``(n, D)`` blocks of bounded size."""
    dim = max(1, x.shape[1])
    most = min(max(1, VECTORS // dim), 2**17)
    if x.dim() == 2:
        yield from x.split(most)
    elif x.numel() > 0:
        images, lines = max(1, most // (x.shape[2] * x.shape[3])), max(1, most // x.shape[3])
        for some in x.split(images):
            for strip in some.split(lines, dim=2):
                for piece in strip.split(most, dim=3):
                    yield piece.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
