"""Sequences packed end to end, as a list of blocks: one program a block, no empty programs, the longest work first.

Rows left over after the last sequence form one more sequence, number B, that has nothing on the other side: its
programs write zeros. A sequence of ``n`` rows has ``ceil(n / BLOCK)`` blocks, so that ``T / BLOCK + B + 1`` bounds their
number without a look at the lengths; programs beyond the true number return.

In causal attention the work of a query block grows with its place in its sequence; that of a key block shrinks. So
blocks are listed by falling *height*: 1 + index for queries, number - index for keys. The place of block (b, height) is
the number of higher blocks, ``sum_c max(0, number_c - height)``, plus the earlier sequences that have this height.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import common
from dqcore.kernels.common import bound


@triton.jit
def _block_list_kernel(
    cu_seqlens, blocks, B, T, LAST_FIRST: tl.constexpr, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr
):
    HEIGHTS: tl.constexpr = 16
    CHUNK: tl.constexpr = 64
    sequence = tl.program_id(0)
    start = tl.load(cu_seqlens + sequence)
    end = tl.load(cu_seqlens + sequence + 1, mask=sequence < B, other=T)
    number = tl.cdiv(end - start, BLOCK)
    total = tl.zeros([], tl.int32)
    for first in range(0, bound(tl.maximum(number, 1), INTERPRETED), HEIGHTS):
        height = first + 1 + tl.arange(0, HEIGHTS)
        place = tl.zeros([HEIGHTS], tl.int32)
        total = tl.zeros([], tl.int32)
        for chunk in range(0, bound(B, INTERPRETED) + 1, CHUNK):
            other = chunk + tl.arange(0, CHUNK)
            begin = tl.load(cu_seqlens + other, mask=other <= B, other=0)
            finish = tl.load(cu_seqlens + other + 1, mask=other < B, other=T)
            others = tl.where(other <= B, tl.cdiv(finish - begin, BLOCK), 0)
            higher = tl.maximum(others[None, :] - height[:, None], 0)
            earlier = ((other < sequence)[None, :] & (others[None, :] >= height[:, None])).to(tl.int32)
            place += tl.sum(higher + earlier, 1)
            total += tl.sum(others, 0)
        index = height - 1 if LAST_FIRST else number - height
        mine = height <= number
        tl.store(blocks + 1 + 2 * place, sequence, mask=mine)
        tl.store(blocks + 2 + 2 * place, index, mask=mine)
    if sequence == 0:
        tl.store(blocks, total)


@triton.jit
def listed(blocks, entry, BLOCK: tl.constexpr):
    """Whether the list has this entry, its sequence, and the first row of its block within the sequence."""
    inside = entry < tl.load(blocks)
    sequence = tl.load(blocks + 1 + 2 * entry, mask=inside, other=0)
    return inside, sequence, tl.load(blocks + 2 + 2 * entry, mask=inside, other=0) * BLOCK


@triton.jit
def extent(cu_seqlens, sequence, B, rest):
    """First row and number of rows of a sequence; number B has ``rest`` as its end."""
    start = tl.load(cu_seqlens + sequence)
    end = tl.load(cu_seqlens + sequence + 1, mask=sequence < B, other=rest)
    return start.to(tl.int64), tl.maximum(end - start, 0)


@triton.jit
def visible(rows, columns, shift, keys, prefix, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Which of ``columns`` (a row of key indices) each of ``rows`` (a column of query indices) sees, or transposed."""
    position = rows + shift
    seen = columns < keys
    if LEFT and RIGHT:
        seen = seen & (((columns >= position - left) & (columns <= position + right)) | (columns < prefix))
    elif LEFT:
        seen = seen & ((columns >= position - left) | (columns < prefix))
    elif RIGHT:
        seen = seen & ((columns <= position + right) | (columns < prefix))
    return seen


def block_list(cu_seqlens: Tensor, rows: int, block: int, *, last_first: bool) -> tuple[Tensor, int]:
    """The list, ``(1 + 2 n,)`` int32: its length, then (sequence, index of the block) of each; and n, which bounds it."""
    batch = cu_seqlens.shape[0] - 1
    size = triton.cdiv(rows, block) + batch + 1
    blocks = torch.empty(1 + 2 * size, dtype=torch.int32, device=cu_seqlens.device)
    _block_list_kernel[(batch + 1,)](
        cu_seqlens, blocks, batch, rows, last_first, block, INTERPRETED=common.INTERPRETED, num_warps=4
    )
    return blocks, size
