"""Sequences packed end to end, cut into blocks of rows: one program a block, no idle programs, the longest work first.

A sequence of ``n`` rows has ``ceil(n / BLOCK)`` blocks. The host does not know the lengths, but it knows that there are
at most ``ceil(T / BLOCK) + B + 1`` blocks, so it launches that many programs; those beyond the true number return.
Rows after the last sequence count as one more sequence, number B, which sees nothing: its programs write zeros.

In causal attention a late query block sees many keys and an early key block is seen by many queries. The list of blocks
therefore begins with the blocks that have most work. The work of a block is measured by its *height*: 1 + index for
queries, number of blocks - index for keys. A block (b, height) comes after all higher blocks, which are
``sum_c max(0, number_c - height)``, and after those of the same height in earlier sequences.

A *matrix* below is a tuple of a pointer to the first row, the stride between rows and the number of rows: the part of a
packed tensor that belongs to one sequence and one head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import bound, cdiv
from dqcore.kernels.launch import launch


@triton.jit(do_not_specialize=["B", "T"], do_not_specialize_on_alignment=["cu_seqlens"])
def _varlen_attention_blocks_kernel(cu_seqlens, blocks, B, T, LAST_FIRST: tl.constexpr, BLOCK: tl.constexpr):
    HEIGHTS: tl.constexpr = 16
    CHUNK: tl.constexpr = 64
    sequence = tl.program_id(0)
    start = tl.load(cu_seqlens + sequence)
    end = tl.load(cu_seqlens + sequence + 1, mask=sequence < B, other=T)
    number = tl.cdiv(end - start, BLOCK)
    total = tl.zeros([], tl.int32)
    for first in range(0, bound(tl.maximum(number, 1)), HEIGHTS):
        height = first + 1 + tl.arange(0, HEIGHTS)
        place = tl.zeros([HEIGHTS], tl.int32)
        total = tl.zeros([], tl.int32)
        for chunk in range(0, bound(B) + 1, CHUNK):
            other = chunk + tl.arange(0, CHUNK)
            begin = tl.load(cu_seqlens + other, mask=other <= B, other=0)  # (CHUNK,)
            finish = tl.load(cu_seqlens + other + 1, mask=other < B, other=T)  # (CHUNK,)
            others = tl.where(other <= B, tl.cdiv(finish - begin, BLOCK), 0)
            higher = tl.maximum(others[None, :] - height[:, None], 0)
            earlier = ((other < sequence)[None, :] & (others[None, :] >= height[:, None])).to(tl.int32)
            place += tl.sum(higher + earlier, 1)
            total += tl.sum(others, 0)
        index = height - 1 if LAST_FIRST else number - height
        mine = height <= number
        tl.store(blocks + 1 + 2 * place, sequence, mask=mine)  # (HEIGHTS,)
        tl.store(blocks + 2 + 2 * place, index, mask=mine)  # (HEIGHTS,)
    if sequence == 0:
        tl.store(blocks, total)


@triton.jit
def listed(blocks, index, BLOCK: tl.constexpr):
    """Whether the list has a block of this index, its sequence, and its first row within the sequence."""
    inside = index < tl.load(blocks)
    sequence = tl.load(blocks + 1 + 2 * index, mask=inside, other=0)
    return inside, sequence, tl.load(blocks + 2 + 2 * index, mask=inside, other=0) * BLOCK


@triton.jit
def extent(cu_seqlens, sequence, B, rest):
    """First row and number of rows of a sequence; sequence B ends at ``rest``."""
    start = tl.load(cu_seqlens + sequence)
    end = tl.load(cu_seqlens + sequence + 1, mask=sequence < B, other=rest)
    return start.to(tl.int64), tl.maximum(end - start, 0)


@triton.jit
def prefix_of(prefix_lengths, sequence, B):
    """How many first keys all queries of a sequence see; 0 where there are no prefixes."""
    if prefix_lengths is None:
        return tl.zeros([], tl.int32)
    else:
        return tl.load(prefix_lengths + sequence, mask=sequence < B, other=0)


@triton.jit
def matrix(packed, row, head, count):
    """``count`` rows from ``row`` on of one head; ``packed`` is a pointer with its strides of rows and heads."""
    start, stride_row, stride_head = packed
    return start + row * stride_row + head * stride_head, stride_row, count


@triton.jit
def load_rows(matrix, first, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows ``first`` to ``first + BLOCK`` of a matrix, ``(BLOCK, BLOCK_D)``; 0 beyond its last row or channel."""
    start, stride, count = matrix
    rows, d = first + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    where = (rows < count)[:, None]
    if D != BLOCK_D:
        where = where & (d < D)[None, :]
    return tl.load(start + rows[:, None].to(tl.int64) * stride + d[None, :], mask=where, other=0.0)  # (BLOCK, BLOCK_D)


@triton.jit
def store_rows(matrix, first, block, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write what :func:`load_rows` would read."""
    start, stride, count = matrix
    rows, d = first + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    where = (rows < count)[:, None]
    if D != BLOCK_D:
        where = where & (d < D)[None, :]
    out = start + rows[:, None].to(tl.int64) * stride + d[None, :]
    tl.store(out, block.to(start.dtype.element_ty), mask=where)  # (BLOCK, BLOCK_D)


@triton.jit
def load_base(lse, rows, count):
    """Base-2 logarithm of the sum of each row's weights; inf where a row has none, so that its weights become 0."""
    value = tl.load(lse + rows, mask=rows < count, other=float("-inf"))  # (BLOCK_M,)
    return tl.where(value == float("-inf"), float("inf"), value * 1.4426950408889634)


@triton.jit
def visible(rows, columns, window, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Whether queries ``rows`` see keys ``columns``. One of them is ``(n, 1)``, the other ``(1, m)``; so ``(n, m)``."""
    shift, keys, prefix, left, right = window
    last = rows * 0 + (keys - 1)
    if RIGHT:
        last = tl.minimum(rows + (shift + right), last)
    seen = columns <= tl.maximum(last, tl.minimum(prefix, keys) - 1)
    if LEFT:
        seen = seen & ((columns >= rows + (shift - left)) | (columns < prefix))
    return seen


@triton.jit
def key_tiles(first, window, LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which tiles of keys the queries from ``first`` on see.

    Returns:
        Number of leading tiles that every query sees whole (0 with a left window), number of all tiles to visit, and,
        since tiles between the prefix and a left window are skipped: after how many tiles, and how many.
    """
    shift, keys, prefix, left, right = window
    low = first + shift  # the key that stands where the first query does
    whole, end = keys // BLOCK_N, keys
    if RIGHT:
        whole = tl.minimum(whole, tl.maximum(low + right + 1, 0) // BLOCK_N)
        end = tl.minimum(keys, tl.maximum(low + BLOCK_M + right, prefix))
    tiles = tl.cdiv(tl.maximum(end, 0), BLOCK_N)
    shown = tl.cdiv(tl.minimum(prefix, keys), BLOCK_N)
    gap = shown * 0
    if LEFT:
        whole = whole * 0
        gap = tl.minimum(tl.maximum(tl.maximum(low - left, 0) // BLOCK_N - shown, 0), tl.maximum(tiles - shown, 0))
    return whole, tiles - gap, shown, gap


@triton.jit
def query_tiles(
    first, queries, window, LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Which tiles of queries see a key of the block from ``first`` on.

    Returns:
        Index of the first such tile, of the first from which on queries see the whole block (with a left window: the
        end), and the end.
    """
    shift, _, prefix, left, right = window
    begin, whole, end = first * 0, first * 0, queries
    if RIGHT:
        begin = tl.maximum(first - right - shift, 0)
        whole = tl.maximum(first + BLOCK_N - 1 - right - shift, 0)
    if LEFT:
        end = tl.minimum(queries, tl.maximum(first + BLOCK_N + left - shift, 0))
    in_prefix = first < prefix
    begin, end = tl.where(in_prefix, 0, begin) // BLOCK_M, tl.cdiv(tl.where(in_prefix, queries, end), BLOCK_M)
    whole = end if LEFT else tl.minimum(tl.cdiv(whole, BLOCK_M), end)
    return tl.minimum(begin, whole), whole, end


def block_list(cu_seqlens: Tensor, rows: int, block: int, *, last_first: bool) -> tuple[Tensor, int]:
    """The list of blocks, and how many it may hold.

    Args:
        cu_seqlens: First rows of the sequences and the end of the last, ``(B + 1,)`` int32.
        rows: Rows of the packed tensor.
        block: Rows of a block.
        last_first: Whether blocks late in a sequence have the most work, as those of queries; else early ones.

    Returns:
        ``(1 + 2 n,)`` int32: the number of blocks, then sequence and index within it of each; and ``n``.
    """
    batch = cu_seqlens.shape[0] - 1
    size = cdiv(rows, block) + batch + 1
    blocks = torch.empty(1 + 2 * size, dtype=torch.int32, device=cu_seqlens.device)
    launch(_varlen_attention_blocks_kernel, (batch + 1,))(
        cu_seqlens, blocks, batch, rows, last_first, block, num_warps=4, enable_fp_fusion=True
    )
    return blocks, size
