"""The specification of ``take_entry``: which entries may come next, the draw, and what taking one changes."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.kernels.tape import BANNED, FOR_POSITION
from dqcore.ops.reference.draw import draw_reference, guided

__all__ = ["blocked_entries", "go", "take_entry_reference"]


def take_entry_reference(
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
    """Draw an entry for each slot by ``logits (copies * S, columns)``, or take the first that may come; go there."""
    blocked = blocked_entries(status)
    if logits is None:
        entries = blocked.to(torch.uint8).argmin(1)
    else:
        scores = guided(logits, len(here), guidance).index_select(1, columns).masked_fill_(blocked, -torch.inf)
        entries = draw_reference(scores, here[0, :, 0, FOR_POSITION], temperature, top_k, top_p)
    go(here, status, tokens, rules, entries)


def blocked_entries(status: Tensor) -> Tensor:
    """``(S, L)`` bool: False at the entries that may come next, True elsewhere.

    An entry may come next if it is not banned and no mandatory entry stands before it. Entries that were passed
    have been banned. At the end of the tape the last entry stays open.
    """
    mandatory_so_far = (status >> 1).cumsum(1)  # MANDATORY >> 1 is 1; the entry itself is counted
    return status <= mandatory_so_far


def go(here: Tensor, status: Tensor, tokens: Tensor, rules: Tensor, entries: Tensor) -> None:
    """Take the entries ``(S,)``: change statuses by the rules, ban entries passed, and look up the tokens there."""
    changed, statuses = rules.index_select(0, entries).unbind(-1)
    status.scatter_(1, changed, statuses)
    before_the_last = torch.arange(status.shape[1] - 1, device=status.device)
    status[:, :-1].masked_fill_(before_the_last <= entries[:, None], BANNED)
    where = entries[:, None, None].expand(len(here), -1, 1, here.shape[-1])
    torch.gather(tokens, 2, where, out=here)
