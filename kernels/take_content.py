"""Drawing the code that stands at the entry just taken, and the end of a step. A program has one slot.

It draws, puts what is known of the entry in place of the code, notes the content on the tape, counts the token and says
whether the slot goes on.
Reference: ``dqcore.ops.take_content``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import tape
from dqcore.kernels.common import on_device
from dqcore.kernels.draw import close_rows, draw_index, is_long, load_block, load_logits, options, settings
from dqcore.kernels.draw_long import draw_long

_WIDTH, _NUMBER, _ENTRY = tl.constexpr(tape.WIDTH), tl.constexpr(tape.FOR_CODE), tl.constexpr(tape.ENTRY)
_LEAST, _MOST = tl.constexpr(tape.LEAST), tl.constexpr(tape.MOST)


@triton.jit
def _end_step(here, taken, lengths, active, code, slot, S, L, COPIES: tl.constexpr):
    """Put the code, or what is known, at the entry just taken, count the token and say whether the slot goes on."""
    for copy in tl.static_range(COPIES):
        row = copy * S + slot
        token = here + row * _WIDTH
        content = tl.minimum(tl.maximum(code, tl.load(token + _LEAST)), tl.load(token + _MOST))
        entry = tl.load(token + _ENTRY)
        tl.store(token + _LEAST, content)
        if copy == 0:
            tl.store(taken + slot * L + entry, content)
        tl.store(lengths + row, tl.load(lengths + row) + tl.load(active + row).to(tl.int32))
        tl.store(active + row, entry < L - 1)


@triton.jit(do_not_specialize=["S", "L", "K", "temperature", "top_k", "goal"])
def _take_content_kernel(
    here, taken, lengths, active, logits, S, L, K, guidance, temperature, top_k, goal,
    COPIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = load_logits(logits, slot, S, i, i < K, guidance)  # (BLOCK,)
    code = draw_index(x, K, tl.load(here + slot * _WIDTH + _NUMBER), temperature, top_k, goal)
    _end_step(here, taken, lengths, active, code, slot, S, L, COPIES)


@triton.jit(do_not_specialize=["S", "L", "K", "temperature", "top_k", "goal"])
def _take_content_long_kernel(
    here, taken, lengths, active, logits, S, L, K, guidance, temperature, top_k, goal,
    COPIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    number = tl.load(here + slot * _WIDTH + _NUMBER)
    code = draw_long(load_block, (logits, slot, S, K, guidance), K, number, temperature, top_k, goal, BLOCK)
    _end_step(here, taken, lengths, active, tl.minimum(code, K - 1), slot, S, L, COPIES)


def take_content_fwd(
    here: Tensor,
    taken: Tensor,
    lengths: Tensor,
    active: Tensor,
    logits: Tensor,
    guidance: float,
    temperature: float,
    top_k: int | None,
    top_p: float,
) -> None:
    """Fill ``here (copies, S, 1, W)`` and ``taken (S, L)`` with codes; counts in ``lengths`` and ``active (R,)``."""
    copies, slots = here.shape[:2]
    count = logits.shape[1]
    if not slots:
        return
    kernel = _take_content_long_kernel if is_long(count) else _take_content_kernel
    with on_device(taken):
        kernel[(slots,)](
            *(here, taken, lengths, active, close_rows(logits), slots, taken.shape[1], count),
            guidance if copies > 1 else None,
            *settings(temperature, top_k, top_p, count),
            COPIES=copies,
            **options(count),
            enable_fp_fusion=True,
        )
