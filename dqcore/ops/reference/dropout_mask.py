"""The specification of ``dropout_mask``: random bytes of Philox-4x32 with 7 rounds, one for each attention weight.

The key is ``seed``. The counter ``(4 (c // 64) + (c % 8) // 2, row, head, offset)``, with c even, gives 16 bytes: those
of columns ``c + {0, 1} + 8 {0, ..., 7}`` of one row of the weights. These are the columns that one thread holds of a
tensor core's result, so that a kernel makes 16 weights' bytes with one call and moves none between threads. A weight
survives if its byte is less than ``keep``, of 256: the share of survivors is exact, and tile size, device and batch do
not change which they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dropout_mask_reference"]

ROUNDS = 7
COLUMNS = 64  # that four counters cover
WORD = 0xFFFFFFFF


def dropout_mask_reference(seed: Tensor, num_heads: int, rows: Tensor, num_columns: int, keep: int) -> Tensor:
    """Which weights survive in these rows of the packed queries: ``(H, len(rows), num_columns)`` bool."""
    blocks = -(-num_columns // COLUMNS)
    counters = torch.arange(4 * blocks, device=seed.device)
    heads = torch.arange(num_heads, device=seed.device)
    words = _philox(
        (counters, rows.to(torch.int64)[:, None], heads[:, None, None], seed[1] & WORD),
        (seed[0] & WORD, (seed[0] >> 32) & WORD),
    )
    shape = (num_heads, len(rows), blocks, 4)
    shifts = torch.arange(0, 32, 8, device=seed.device)
    survives = [((word.expand(num_heads, len(rows), -1)[..., None] >> shifts) & 255) < keep for word in words]
    pairs = torch.stack(survives, dim=-2).view(*shape, 8, 2)  # counter, column // 8, column % 2
    return pairs.transpose(3, 4).reshape(*shape[:2], blocks * COLUMNS)[..., :num_columns]


def _philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32 (Salmon et al. 2011) on 32-bit words, each held in an int64.

    A product of two words may overflow int64; it wraps, which leaves its 64 bits right.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((right >> 32) & WORD) ^ c1 ^ k0, right & WORD, ((left >> 32) & WORD) ^ c3 ^ k1, left & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3
