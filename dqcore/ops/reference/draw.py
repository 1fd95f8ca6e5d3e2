"""The specification of ``draw``: probabilities as whole numbers, and the first of them that pass a random share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dqcore.kernels.tape import BITS, WEIGHT

__all__ = ["draw_reference", "guided"]


def draw_reference(logits: Tensor, numbers: Tensor, temperature: float, top_k: int | None, top_p: float) -> Tensor:
    """``logits (S, V)`` and random numbers ``(S,)`` to indices ``(S,)`` int64."""
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, sorted=False).values.amin(1, keepdim=True)
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(1)
    weights = _weights(probabilities) if top_p == 1.0 else _nucleus(probabilities, top_p)
    sums = weights.cumsum(1)
    return torch.searchsorted(sums, sums[:, -1:] * numbers[:, None] >> BITS, right=True)[:, 0]


def guided(logits: Tensor, copies: int, guidance: float) -> Tensor:
    """Logits of two copies ``(2 S, V)``, with the class and without, to one; those of one copy stay as they are."""
    if copies == 1:
        return logits
    with_class, without = logits.float().chunk(2)
    return torch.lerp(without, with_class, guidance)


def _weights(probabilities: Tensor) -> Tensor:
    """Probabilities in units of ``2**-38``, rounded down."""
    return (probabilities * WEIGHT).long()


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Weights, but 0 for all but the largest probabilities, as few of them as reach the sum ``top_p``."""
    ordered = probabilities.sort(1, descending=True).values
    weights = _weights(ordered)
    before = weights.cumsum(1) - weights
    least = torch.where(before < math.ceil(top_p * WEIGHT), ordered, torch.inf).amin(1, keepdim=True)
    return _weights(probabilities) * (probabilities >= least)
