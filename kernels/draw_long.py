"""Drawing an index from a row of logits that is too long for registers: a program reads it again for all it asks.

What is asked is what ``draw_index`` asks of a row in registers, in the same arithmetic. Sums over the row are kept for
each place of a block, and added up once. Two bits of a search cost a reading of the row; those that the largest number
decides, or the largest of each place, cost none.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dqcore.kernels import tape
from dqcore.kernels.common import bound
from dqcore.kernels.probabilities import float_of, lowest, ordered, share, weigh

_BITS = tl.constexpr(tape.BITS)


@triton.jit
def draw_long(load: tl.constexpr, source, count, number, temperature, top_k, goal, BLOCK: tl.constexpr):
    """An index for the ``count`` logits ``load(source, i)``, -inf from there on; more if none has a probability."""
    peaks = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, bound(count), BLOCK):
        peaks = tl.maximum(peaks, load(source, start + tl.arange(0, BLOCK)))
    largest, least = tl.max(peaks, 0), float("-inf")
    if top_k is not None:  # of logits as they are: what tells two apart may have the quotient of the smaller
        keys = ordered(peaks)
        known = lowest(keys, tl.full([BLOCK], 1, tl.int32), top_k, 32)
        key = _lowest(_counted, load, source, None, count, top_k, known, tl.max(keys, 0), 32, BLOCK)
        least = float_of(key)
    scale = temperature, least, tl.div_rn(largest, temperature)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, bound(count), BLOCK):
        sums += _exponentials(load, source, scale, start + tl.arange(0, BLOCK))
    row, key = (scale, tl.sum(sums, 0)), tl.zeros([], tl.uint32)
    if goal is not None:
        most = share(tl.full([], 1.0, tl.float32), row[1]).to(tl.uint32, bitcast=True)
        key = _lowest(_weighed, load, source, row, count, goal.to(tl.int64), key, most, 30, BLOCK)
    return _find(load, source, row, key, count, number, BLOCK)


@triton.jit
def _find(load: tl.constexpr, source, row, key, count, number, BLOCK: tl.constexpr):
    """The index at which the sum of the weights, of those from the key on, passes a random share of the whole."""
    total, _, _ = _amounts(_weighed, load, source, row, count, key, key, key, tl.int64, BLOCK)
    threshold = total * number >> _BITS
    start, index, before = tl.zeros([], tl.int32), tl.zeros([], tl.int32), tl.zeros([], tl.int64)
    while (start < count) & (before <= threshold):
        keys, weights = _weighed(load, source, row, start + tl.arange(0, BLOCK))
        weights = tl.where(keys >= key, weights, 0)
        index += tl.sum((before + tl.cumsum(weights, 0) <= threshold).to(tl.int32), 0)
        before += tl.sum(weights, 0)
        start += BLOCK
    return index


@triton.jit
def _lowest(
    ask: tl.constexpr, load: tl.constexpr, source, row, count, goal, known, most, BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``lowest`` of the keys and amounts that ``ask`` gives, two bits at a time.

    ``known`` is a key from which on they reach the goal, or 0; ``most`` is the largest key.
    """
    least, bit, reached = tl.zeros([], tl.uint32), tl.full([], BITS - 2, tl.int32), goal - 1
    while (bit >= 0) & (reached != goal):
        step = tl.full([], 1, tl.uint32) << bit.to(tl.uint32)
        one, two, three = least + step, least + step * 2, least + step * 3
        if three <= known:
            least = three
        elif one <= most:
            a, b, c = _amounts(ask, load, source, row, count, one, two, three, goal.dtype, BLOCK)
            least = tl.where(c >= goal, three, tl.where(b >= goal, two, tl.where(a >= goal, one, least)))
            reached = tl.where(c >= goal, c, tl.where(b >= goal, b, tl.where(a >= goal, a, reached)))
        bit -= 2
    return least


@triton.jit
def _amounts(
    ask: tl.constexpr, load: tl.constexpr, source, row, count, one, two, three, dtype: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of the amounts from each of three keys on."""
    a, b, c = tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype)
    for start in range(0, bound(count), BLOCK):
        keys, amounts = ask(load, source, row, start + tl.arange(0, BLOCK))
        a += tl.where(keys >= one, amounts, 0)
        b += tl.where(keys >= two, amounts, 0)
        c += tl.where(keys >= three, amounts, 0)
    return tl.sum(a, 0), tl.sum(b, 0), tl.sum(c, 0)


@triton.jit
def _counted(load: tl.constexpr, source, row, i):
    return ordered(load(source, i)), 1


@triton.jit
def _weighed(load: tl.constexpr, source, row, i):
    scale, total = row
    p = share(_exponentials(load, source, scale, i), total)
    return p.to(tl.uint32, bitcast=True), weigh(p)  # keys below 2**30, as probabilities are at most 1


@triton.jit
def _exponentials(load: tl.constexpr, source, scale, i):
    temperature, least, largest = scale
    x = load(source, i)
    return tl.exp(tl.where(x < least, float("-inf"), tl.div_rn(x, temperature)) - largest)
