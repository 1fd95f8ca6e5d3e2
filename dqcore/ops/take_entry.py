"""``take_entry``: the first half of a sampling step's bookkeeping, from logits of positions to the next token.

Gradient: none. Determinism: as :mod:`dqcore.ops.draw`.
Cost: on a GPU one launch, which reads the statuses of all entries and the logits of those that may come next. On
tapes of more than 8192 entries it reads both as often as :mod:`dqcore.ops.draw` reads its logits, up to the next
mandatory entry.
"""

from __future__ import annotations

from torch import Tensor

from dqcore.ops.reference.take_entry import take_entry_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["take_entry"]


def take_entry(
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
    """Draw the next entry of each slot from those that may come next, and take it.

    For :class:`dqcore.models.sampling.walk.TapeWalk`, which made the tensors: they are contiguous and are not checked.
    ``W`` columns of a token are those of ``kernels/tape.py``; the two last are the random numbers.

    Args:
        here: The token at which each slot stands, ``(copies, S, 1, W)`` int64. **Written to.**
        status: Statuses of the entries, ``(S, L)`` int64. **Written to.**
        tokens: All tokens of each slot, ``(copies, S, L, W)`` int64.
        columns: Which logit is each entry's, ``(L,)`` int64.
        rules: What taking an entry changes, ``(L, E, 2)`` int64: entries, and their statuses from then on.
        logits: ``(copies * S, C)`` floating; None where each slot takes the first entry that may come.
        guidance: ``s`` in ``second + s (first - second)``, of the two copies' logits; without effect for one copy.
        temperature: As in :func:`dqcore.ops.draw.draw`, as are the next two.
        top_k: Of the entries that may come next, not of all logits.
        top_p: The same.
    """
    _op.overload(here, status, tokens, columns, rules, logits, guidance, temperature, top_k, top_p)


def _fake(*args: object) -> None:
    return None


def _triton(here: Tensor, status: Tensor, *args: object) -> None:
    from dqcore.kernels.take_entry import take_entry_fwd

    take_entry_fwd(here, status, *args)  # type: ignore[arg-type]


_op = register(
    "take_entry",
    take_entry_reference,
    fake=_fake,
    gpu=Implementation(_triton, "triton"),
    mutates_args=("here", "status"),
)
