"""A codebook prepared for searching on the CPU, and kept for the next call where the codes stay as they are.

A CPU with AMX first settles most vectors by products of bfloat16 parts (:mod:`dqcore.ops.cpu.split_codes`); the rest,
and all vectors on other CPUs, are for float32 products (:mod:`dqcore.ops.cpu.product_search`).
"""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

import torch
from torch import Tensor

from dqcore import backends
from dqcore.ops.cpu.product_search import CODES, ProductSearch, finite
from dqcore.ops.cpu.split_codes import SplitCodes, split_codes, supported

__all__ = ["CodeSearch", "code_search", "forget"]

FEW = 64  # for this many vectors or fewer, preparing a codebook takes longer than searching it
MOST = 64  # codebooks that are remembered


class CodeSearch:
    """A codebook prepared for searching: in parts where the CPU has AMX, and for what they leave open in float32.

    Args:
        codebook: ``(K, D)``.
        precision: ``"exact"``, or ``"fast"`` for the smallest float32 score where there is no AMX.
    """

    def __init__(self, codebook: Tensor, precision: str) -> None:
        self.codebook = codebook
        self.product = functools.cache(lambda few: ProductSearch(codebook, precision, few=few))

    @functools.cached_property
    def split(self) -> SplitCodes | None:
        """The codes in parts, where the CPU multiplies such."""
        return split_codes(self.codebook)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Nearest codes ``(n,)`` of ``vectors (n, D)``."""
        split = self.split if len(vectors) > FEW else None
        if split is None:
            return self.product(len(vectors) <= FEW)(vectors)
        codes = split(vectors)
        if len(codes) == 0 or int(codes.min()) >= 0:
            return codes
        rest = (codes < 0).nonzero()[:, 0]
        rest = rest[finite(vectors[rest])]  # the others have no code, and need no search to know it
        if len(rest):
            codes[rest] = self.product(len(rest) <= FEW)(vectors[rest])
        return codes


class _Known(NamedTuple):
    """A codebook that was searched."""

    version: int  # of its tensor; it misses what is written through ``.data``
    search: CodeSearch | None  # of a copy of it, from its second call on


_known: dict[tuple, _Known] = {}
_lock = threading.Lock()


def code_search(codebook: Tensor, precision: str) -> CodeSearch:
    """A search of the codebook ``(K, D)``: the one kept from an earlier call if its codes equal these, else a new one.

    A codebook that comes a second time unchanged is copied, and the search of the copy is kept, as long as all kept
    codebooks together have at most 2^21 elements. The values are compared, since PyTorch's version misses some writes.
    """
    if codebook.numel() > CODES:
        return CodeSearch(codebook, precision)
    version = 0 if codebook.is_inference() else codebook._version
    how = precision, backends.exact_float32_matmul(), supported()
    key = (codebook.data_ptr(), codebook.dtype, codebook.shape, codebook.stride(), *how)
    with _lock:
        before = _known.pop(key, None)
        search = None if before is None else before.search
        if search is not None and not torch.equal(search.codebook, codebook):
            search = None
        if search is None and before is not None and before.version == version:
            search = CodeSearch(codebook.clone(), precision)
        _known[key] = _Known(version, search)  # now the latest
        _drop_oldest()
    return CodeSearch(codebook, precision) if search is None else search


def forget() -> None:
    """Keep no search."""
    with _lock:
        _known.clear()


def _drop_oldest() -> None:
    """Drop the oldest codebooks until the others may be kept."""
    sizes = {key: 0 if known.search is None else known.search.codebook.numel() for key, known in _known.items()}
    for key in list(_known)[:-1]:
        if len(sizes) <= MOST and sum(sizes.values()) <= CODES:
            return
        del _known[key], sizes[key]
