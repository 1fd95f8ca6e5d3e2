"""The codebook as a CPU with AMX reads it: bfloat16 parts in tiles, and by how much a score of theirs may be off.

``csrc/cpu/nearest_code.cpp`` adds up the products; ``docs/exactness.md`` derives the numbers below.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore import backends
from dqcore.ops.cpu.prepared_codes import Block, PreparedCodes

__all__ = ["SplitCodes", "supported"]

STACKED = 16  # up to so many channels the parts of a vector lie one after the other in its tiles
WIDTH = 32  # bfloat16 numbers of a row of a tile
MOST = 2**22  # elements of a codebook: 16 MB in parts
UNIT = 2.0**-24


@functools.cache
def supported() -> bool:
    """Whether this CPU and the installed extension can do it."""
    module = backends.extension()
    return module is not None and bool(module.has_tiles())


class SplitCodes:
    """A codebook in two bfloat16 parts.

    Args:
        prepared: The codebook, centred and scaled, in float32; not more than MOST elements.
    """

    def __init__(self, prepared: PreparedCodes) -> None:
        dim = prepared.codebook.shape[1]
        self.stacked = dim <= STACKED
        blocks = [self._tiles(prepared.block(first)) for first in prepared.starts]
        tiles, square, lows, rests = zip(*blocks, strict=True)
        self._kept = torch.cat(tiles), torch.cat(square), prepared.mean.contiguous()
        module = backends.extension()
        assert module is not None
        each = self._kept[0].shape[1]
        pointers = (tensor.data_ptr() for tensor in self._kept)
        margin = _margin(prepared.radius, max(lows), max(rests), dim, each)
        self._native = module.SplitCodes(*pointers, len(self._kept[1]), dim, each, self.stacked, prepared.scale, margin)
        self._search = module.nearest_split_code

    def __call__(self, vectors: Tensor) -> Tensor:
        """The nearest codes ``(n,)`` of ``vectors (n, D)``, -1 for those that rounding might decide."""
        vectors = vectors.float().contiguous()
        codes = torch.empty(len(vectors), dtype=torch.int64)
        self._search(self._native, vectors.data_ptr(), len(vectors), codes.data_ptr(), torch.get_num_threads())
        return codes

    def _tiles(self, block: Block) -> tuple[Tensor, Tensor, float, float]:
        """The tiles of some codes, ``||c'||^2``, and the largest norms of low part and rest, both of -2 c'."""
        num = len(block.values)
        high = block.values.bfloat16()
        left = block.values - high
        low = left.bfloat16()
        norms = (float(torch.linalg.vector_norm(part, dim=1).max()) for part in (low.float(), left - low))
        if self.stacked:
            rows = F.pad(torch.cat([high, high, low], 1), (0, -3 * high.shape[1] % WIDTH))
        else:
            parts = (F.pad(part, (0, -part.shape[1] % WIDTH)).view(num, -1, WIDTH) for part in (high, low))
            rows = torch.stack(list(parts), 2)
        tiles = rows.view(num // 16, 16, -1, WIDTH // 2, 2).permute(0, 2, 3, 1, 4).contiguous()
        return tiles, block.square, *norms


def _margin(radius: float, low: float, rest: float, dim: int, tiles: int) -> list[float]:
    """Twice the error of a score, as factors of the lengths of a vector's parts: see ``SplitCodes`` in csrc/ops.h.

    Args:
        radius: ``C``, at least the norm of every c'.
        low: At least the norm of the low part of every -2 c'.
        rest: At least the norm of what both parts of -2 c' leave over.
        dim: Channels D.
        tiles: Tiles that hold a vector's parts.
    """
    rounded = (3 * tiles // 2 + 33) * 1.04 + 8
    floor = math.sqrt(dim) * 2.0**-62
    low, rest = 1.0001 * low + floor, 1.0001 * rest + floor
    lost = 2.0**-118 * (dim + WIDTH)
    by_norm = 2 * rounded * UNIT * radius + rest + lost
    always = 8 * UNIT * radius**2 + lost * (1 + radius)
    error = (by_norm, low, 2 * radius + rest, 2.0**-47)
    return [*(2.02 * factor for factor in error), radius, 2.02 * always, floor]
