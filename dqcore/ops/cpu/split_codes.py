"""The codebook as a CPU with AMX reads it: each number as two of bfloat16, whose products settle nearly every vector.

``csrc/cpu/nearest_code.cpp`` multiplies; ``docs/exactness.md`` proves that what it settles is right.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dqcore import backends
from dqcore.ops.cpu.prepared_codes import power_of_two

__all__ = ["SplitCodes", "split_codes", "supported"]

ELEMENTS = 2**22  # the largest codebook: 16 MB in parts
CHANNELS = 2**14  # up to so many, sums of squares in float32 are accurate to the 0.01 % that the proof assumes


@functools.cache
def supported() -> bool:
    """Whether this CPU and the installed extension can do it."""
    module = backends.extension()
    return module is not None and bool(module.has_tiles())


def split_codes(codebook: Tensor) -> SplitCodes | None:
    """A codebook ``(K, D)`` in parts; None where CPU, size or a value that is not finite forbids it."""
    if not 0 < codebook.numel() <= ELEMENTS or codebook.shape[1] > CHANNELS or not supported():
        return None
    codebook = codebook.float().contiguous()
    mean = codebook.mean(0)
    scale = power_of_two(float((codebook - mean).abs_().max()))
    mean *= scale
    return SplitCodes(codebook, mean, scale) if bool(mean.isfinite().all()) else None


class SplitCodes:
    """A codebook in parts.

    Args:
        codebook: ``(K, D)``, float32, contiguous, finite.
        mean: What is taken off every vector once it is scaled, ``(D,)``, float32.
        scale: A power of two.
    """

    def __init__(self, codebook: Tensor, mean: Tensor, scale: float) -> None:
        module = backends.extension()
        assert module is not None
        self._native = module.SplitCodes(codebook.data_ptr(), *codebook.shape, mean.data_ptr(), scale)

    def __call__(self, vectors: Tensor) -> Tensor:
        """The nearest codes ``(n,)`` of ``vectors (n, D)``; -1 for those that rounding might decide."""
        vectors = vectors.float().contiguous()
        codes = torch.empty(len(vectors), dtype=torch.int64)
        self._native.nearest(vectors.data_ptr(), len(vectors), codes.data_ptr(), torch.get_num_threads())
        return codes
