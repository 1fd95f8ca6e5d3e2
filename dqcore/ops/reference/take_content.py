"""The specification of ``take_content``: the draw of a code, and the end of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.kernels.tape import ENTRY, FOR_CODE, LEAST, MOST
from dqcore.ops.reference.draw import draw_reference, guided

__all__ = ["fill", "take_content_reference"]


def take_content_reference(
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
    """Draw a code for each slot by ``logits (copies * S, K)``, give it to the entry just taken, and count the token."""
    scores = guided(logits, len(here), guidance)
    fill(here, taken, draw_reference(scores, here[0, :, 0, FOR_CODE], temperature, top_k, top_p))
    lengths += active
    torch.lt(here[:, :, 0, ENTRY], taken.shape[1] - 1, out=active.view(len(here), -1))


def fill(here: Tensor, taken: Tensor, codes: Tensor) -> None:
    """Give the entries just taken their contents: the codes ``(S,)``, or what is known to stand there."""
    least, most = here[..., LEAST], here[..., MOST]
    torch.clamp(codes[:, None], least, most, out=least)
    taken.scatter_(1, here[0, :, :, ENTRY], least[0])
