"""Drawing the next entry of each slot's tape, and taking it. A program has one slot: its tape is in registers.

It reads the statuses of all entries, counts the mandatory ones to find which entries may come next, gathers the logits
of these, draws, and writes the statuses that change and the token that stands there. Nobody else touches the slot. A
long tape is walked block by block instead.
Reference: ``dqcore.ops.take_entry``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import tape
from dqcore.kernels.common import bound, on_device
from dqcore.kernels.draw import close_rows, draw_index, is_long, load_logits, options, settings
from dqcore.kernels.draw_long import draw_long

_BANNED, _MANDATORY = tl.constexpr(tape.BANNED), tl.constexpr(tape.MANDATORY)
_WIDTH, _NUMBER = tl.constexpr(tape.WIDTH), tl.constexpr(tape.FOR_POSITION)


@triton.jit
def _ban(status, i, entry, L, BLOCK: tl.constexpr):
    """Ban those of the entries ``i (BLOCK,)`` that are passed."""
    tl.store(status + i, tl.full([BLOCK], _BANNED, tl.int64), mask=(i <= entry) & (i < L - 1))


@triton.jit
def _take(here, status, tokens, rules, slot, S, L, entry, COPIES: tl.constexpr, RULES: tl.constexpr,
          BLOCK_RULES: tl.constexpr):  # fmt: skip
    """Change statuses by the rules, and copy the token."""
    rule = tl.arange(0, BLOCK_RULES)
    place = rules + (entry * RULES + rule) * 2
    changed = tl.load(place, mask=rule < RULES, other=-1)  # (BLOCK_RULES,)
    value = tl.load(place + 1, mask=rule < RULES, other=0)
    tl.store(status + slot * L + changed, value, mask=(changed > entry) | (changed == L - 1))
    for copy in tl.static_range(COPIES):
        row, column = copy * S + slot, tl.arange(0, 8)
        token = tl.load(tokens + (row * L + entry) * _WIDTH + column, mask=column < _WIDTH)
        tl.store(here + row * _WIDTH + column, token, mask=column < _WIDTH)


@triton.jit(do_not_specialize=["S", "L", "temperature", "top_k", "goal"])
def _take_entry_kernel(
    here, status, tokens, columns, rules, logits, S, L, guidance, temperature, top_k, goal,
    COPIES: tl.constexpr, RULES: tl.constexpr, BLOCK_RULES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    now = tl.load(status + slot * L + i, mask=i < L, other=_BANNED).to(tl.int32)  # (BLOCK,)
    may_be_next = now > tl.cumsum(now >> 1, 0)  # 1 for mandatory ones; the entry itself is counted
    if logits is None:
        entry = tl.minimum(tl.min(tl.where(may_be_next, i, L), 0), L - 1)
    else:
        column = tl.load(columns + i, mask=i < L, other=0)  # (BLOCK,)
        x = load_logits(logits, slot, S, column, may_be_next, guidance)
        number = tl.load(here + slot * _WIDTH + _NUMBER)
        entry = draw_index(x, L, number, temperature, top_k, goal)
    entry = entry.to(tl.int64)
    _ban(status + slot * L, i, entry, L, BLOCK)
    _take(here, status, tokens, rules, slot, S, L, entry, COPIES, RULES, BLOCK_RULES)


@triton.jit
def _load_entries(source, i):
    """Logits of the entries ``i`` that may come next: of those up to the first mandatory one that are not banned."""
    status, columns, logits, slot, S, count, guidance = source
    may_be_next = tl.load(status + i, mask=i < count, other=_BANNED) != _BANNED
    column = tl.load(columns + i, mask=may_be_next, other=0)
    return load_logits(logits, slot, S, column, may_be_next, guidance)


@triton.jit(do_not_specialize=["S", "L", "temperature", "top_k", "goal"])
def _take_entry_long_kernel(
    here, status, tokens, columns, rules, logits, S, L, guidance, temperature, top_k, goal,
    COPIES: tl.constexpr, RULES: tl.constexpr, BLOCK_RULES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    mine = status + slot * L
    first, last = tl.full([BLOCK], L - 1, tl.int32), tl.full([BLOCK], L - 1, tl.int32)
    for start in range(0, bound(L), BLOCK):
        i = start + tl.arange(0, BLOCK)
        now = tl.load(mine + i, mask=i < L, other=_BANNED)
        first = tl.minimum(first, tl.where(now != _BANNED, i, L - 1))
        last = tl.minimum(last, tl.where(now == _MANDATORY, i, L - 1))
    entry = tl.min(first, 0)
    if logits is not None:
        count = tl.min(last, 0) + 1
        source = mine, columns, logits, slot, S, count, guidance
        number = tl.load(here + slot * _WIDTH + _NUMBER)
        entry = draw_long(_load_entries, source, count, number, temperature, top_k, goal, BLOCK)
        entry = tl.where(entry < count, entry, L - 1)
    entry = entry.to(tl.int64)
    for start in range(0, bound(entry + 1), BLOCK):
        _ban(mine, start + tl.arange(0, BLOCK), entry, L, BLOCK)
    _take(here, status, tokens, rules, slot, S, L, entry, COPIES, RULES, BLOCK_RULES)


def take_entry_fwd(
    here: Tensor,
    status: Tensor,
    tokens: Tensor,
    columns: Tensor,
    rules: Tensor,
    logits: Tensor | None,
    guidance: float,
    temperature: float,
    top_k: int | None,
    top_p: float,
) -> None:
    """Move ``here (copies, S, 1, W)`` to the next of ``tokens (copies, S, L, W)``; changes ``status (S, L)`` too."""
    copies, slots, length, _ = tokens.shape
    if not slots:
        return
    kernel = _take_entry_long_kernel if is_long(length) else _take_entry_kernel
    with on_device(status):
        kernel[(slots,)](
            *(here, status, tokens, columns, rules, None if logits is None else close_rows(logits), slots, length),
            guidance if copies > 1 else None,
            *settings(temperature, top_k, top_p, length),
            COPIES=copies,
            RULES=rules.shape[1],
            BLOCK_RULES=triton.next_power_of_2(rules.shape[1]),
            **options(length),
            enable_fp_fusion=True,
        )
