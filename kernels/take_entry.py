"""Drawing the next entry of each slot's tape, and taking it. A program has one slot: its tape is in registers.

It reads the statuses of all entries, counts the mandatory ones to find which entries may come next, gathers the logits
of these, draws, and writes the statuses that change and the token that stands there. Nobody else touches the slot.
Reference: ``dqcore.ops.take_entry``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import tape
from dqcore.kernels.common import on_device
from dqcore.kernels.draw import close_rows, draw_index, load_logits, options, settings

_BANNED, _WIDTH, _NUMBER = tl.constexpr(tape.BANNED), tl.constexpr(tape.WIDTH), tl.constexpr(tape.FOR_POSITION)


@triton.jit
def _take(here, status, tokens, rules, slot, S, L, entry, COPIES: tl.constexpr, BLOCK: tl.constexpr,
          RULES: tl.constexpr, BLOCK_RULES: tl.constexpr):  # fmt: skip
    """Change statuses by the rules, ban the entries passed, and copy the token."""
    i, entry = tl.arange(0, BLOCK), entry.to(tl.int64)
    banned = tl.full([BLOCK], _BANNED, tl.int64)
    tl.store(status + slot * L + i, banned, mask=(i <= entry) & (i < L - 1))  # (BLOCK,)
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
    _take(here, status, tokens, rules, slot, S, L, entry, COPIES, BLOCK, RULES, BLOCK_RULES)


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
    with on_device(status):
        _take_entry_kernel[(slots,)](
            *(here, status, tokens, columns, rules, None if logits is None else close_rows(logits), slots, length),
            guidance if copies > 1 else None,
            *settings(temperature, top_k, top_p, length),
            COPIES=copies,
            RULES=rules.shape[1],
            BLOCK_RULES=triton.next_power_of_2(rules.shape[1]),
            **options(length),
            enable_fp_fusion=True,
        )
