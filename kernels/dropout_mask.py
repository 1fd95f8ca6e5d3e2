"""The dropout of attention weights: Philox-4x32-7 on the counter (column group, row, head, offset).

One call of Philox gives 16 bytes, for columns ``c + {0, 1} + 8 {0, ..., 7}`` with c even. In the layout of a tensor
core's result these columns belong to one thread, so the bytes need not move between threads. Which weights survive
depends on rows and columns alone, not on the tile. Reference: ``dqcore.ops.dropout_mask``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keep_tile(seed, head, rows, column, KEEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which weights survive: ``(BLOCK_M, BLOCK_N)`` for packed rows ``rows`` and keys from ``column`` on.

    ``column`` is a multiple of BLOCK_N, which is 32 or a multiple of 64.
    """
    GROUPS: tl.constexpr = (BLOCK_N + 63) // 64
    counter = (column // 64 * 4 + tl.arange(0, 4 * GROUPS)).to(tl.uint32)[None, :]
    offset = tl.load(seed + 1).to(tl.uint32)
    a, b, c, d = tl.philox(tl.load(seed), counter, rows.to(tl.uint32)[:, None], head.to(tl.uint32), offset, n_rounds=7)
    if BLOCK_N == 32:  # half of the bytes
        second = column % 64 != 0
        words = tl.join(tl.where(second, c, a), tl.where(second, d, b))
        halves = tl.join(words, words >> 16)
        survives = (tl.join(halves, halves >> 8) & 255) < KEEP  # row, column // 2 % 4, // 16 % 2, // 8 % 2, % 2
        return tl.reshape(tl.permute(survives, [0, 2, 3, 1, 4]), [BLOCK_M, BLOCK_N])
    else:
        words = tl.join(tl.join(a, b), tl.join(c, d))
        halves = tl.join(words, words >> 16)
        survives = (tl.join(halves, halves >> 8) & 255) < KEEP
        survives = tl.reshape(survives, [BLOCK_M, GROUPS, 4, 2, 2, 2, 2])  # row, group, // 2, // 16, // 32, // 8, % 2
        return tl.reshape(tl.permute(survives, [0, 1, 4, 3, 5, 2, 6]), [BLOCK_M, BLOCK_N])


@triton.jit
def keep_tile_transposed(seed, head, rows, column, KEEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The transpose of :func:`keep_tile`, ``(BLOCK_N, BLOCK_M)``.

    Whole 32-bit words are moved to their places; only then is each of their four bytes compared.
    """
    GROUPS: tl.constexpr = (BLOCK_N + 63) // 64
    WORDS: tl.constexpr = BLOCK_N // 16  # a word has the bytes of two of 8 columns in each of two octets
    counter = (column // 64 * 4 + tl.arange(0, 4 * GROUPS)).to(tl.uint32)[None, :]
    offset = tl.load(seed + 1).to(tl.uint32)
    a, b, c, d = tl.philox(tl.load(seed), counter, rows.to(tl.uint32)[:, None], head.to(tl.uint32), offset, n_rounds=7)
    if BLOCK_N == 32:
        second = column % 64 != 0
        words = tl.permute(tl.join(tl.where(second, c, a), tl.where(second, d, b)), [2, 1, 0])
    else:
        words = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), [BLOCK_M, GROUPS, 4, 2, 2])
        words = tl.permute(words, [1, 4, 3, 2, 0])
    words = tl.broadcast_to(tl.reshape(words, [WORDS, 1, 4, 1, BLOCK_M]), [WORDS, 2, 4, 2, BLOCK_M])
    words = tl.reshape(words, [BLOCK_N, BLOCK_M])
    key = tl.arange(0, BLOCK_N)[:, None]
    above = 24 - (key // 8 % 2 * 2 + key % 2) * 8  # what is below the byte then decides nothing
    return words << above.to(tl.uint32) < KEEP << 24
