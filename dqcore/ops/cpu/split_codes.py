"""The codebook as a CPU with AMX reads it: each number as two of bfloat16, whose products settle nearly every vector.

``csrc/cpu/nearest_code.cpp`` multiplies; ``docs/exactness.md`` proves that what it settles is right.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dqcore import backends

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
    codes = SplitCodes(codebook.float().contiguous())
    return codes if codes.usable else None


class SplitCodes:
    """A codebook in parts.

    Args:
        codebook: ``(K, D)``, float32, contiguous; it must stay as it is while this is used.

    Attributes:
        usable: Whether all codes are finite, so that it can be searched.
    """

    def __init__(self, codebook: Tensor) -> None:
        module = backends.extension()
        assert module is not None
        self._codebook = codebook  # so that its memory is not freed before
        self._native = module.SplitCodes(codebook.data_ptr(), *codebook.shape)
        self.usable = bool(self._native.usable)

    def __call__(self, vectors: Tensor) -> Tensor:
        """The nearest codes ``(n,)`` of ``vectors (n, D)``; -1 for those that rounding might decide."""
        vectors = vectors.float().contiguous()
        codes = torch.empty(len(vectors), dtype=torch.int64)
        self._native.nearest(vectors.data_ptr(), len(vectors), codes.data_ptr(), torch.get_num_threads())
        return codes
