"""Which code each vector gets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.compat.lookup import nearest

__all__ = ["gumbel_noise", "lookup", "most_similar", "similarities", "top_codes", "unit"]

#: Similarities in float64 that are held at once.
BLOCK = 2**20


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension; those shorter than 1e-6 become ``x / 1e-6``."""
    return F.normalize(x, p=2.0, dim=-1, eps=1e-6)


def most_similar(rows: Tensor, embed: Tensor, cosine: bool) -> Tensor:
    """The nearest code of ``rows (C, M, d)`` in ``embed (C, K, d)``, or that with the greatest product; ``(C, M)``."""
    if cosine:
        rows, embed = F.pad(rows, (0, 2)), _lifted(embed)
    if len(rows) == 1:
        return nearest(rows[0], embed[0]).clamp_min(0).unsqueeze(0)  # not finite: 0, as their argmin gives it
    found = [nearest(some, codes) for some, codes in zip(rows.unbind(), embed.unbind(), strict=True)]
    return torch.stack(found).clamp_min(0)


def _lifted(embed: Tensor) -> Tensor:
    """Codes with two channels more, in which all have one length: the nearest is now that with the greatest product.

    With M the greatest length, the first new channel is ``sqrt(M^2 - ||e||^2)`` rounded down to float32 and the second
    holds what the rounding took, so that lengths agree to about 1e-14.
    """
    square = embed.double().square().sum(-1)
    gap = square.amax(-1, keepdim=True) - square
    high = (gap.sqrt() * (1 - 2.0**-23)).to(embed.dtype)
    low = (gap - high.double().square()).clamp_min(0).sqrt().to(embed.dtype)
    return torch.cat([embed, high.unsqueeze(-1), low.unsqueeze(-1)], dim=-1)


def similarities(rows: Tensor, embed: Tensor, cosine: bool) -> Tensor:
    """``(C, M, K)``: products, or distances with the sign turned. Has gradients; codes are not taken from it."""
    product = rows @ embed.transpose(-1, -2)
    if cosine:
        return product
    square = rows.square().sum(-1, keepdim=True) + embed.square().sum(-1).unsqueeze(-2)
    return -(square - 2 * product).clamp_min(1e-8).sqrt()


def top_codes(rows: Tensor, embed: Tensor, cosine: bool, number: int) -> Tensor:
    """The ``number`` most similar codes of each vector, the best first, ``(C, M, number)``; compared in float64."""
    wide = embed.double()
    half = 0 if cosine else wide.square().sum(-1).unsqueeze(-2) / 2
    step = max(1, BLOCK // (wide.shape[0] * wide.shape[1]))
    parts = [some.double() @ wide.transpose(-1, -2) - half for some in rows.split(step, dim=1)]
    return torch.cat([part.topk(number, dim=-1).indices for part in parts], dim=1)


def gumbel_noise(like: Tensor) -> Tensor:
    """Noise that makes the greatest of noisy logits a draw from their softmax."""
    uniform = torch.zeros_like(like).uniform_(0, 1)
    return -_log(-_log(uniform))


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(1e-20).log()


def lookup(embed: Tensor, codes: Tensor) -> Tensor:
    """The vectors ``(C, ..., d)`` of ``codes (C, ...)`` in ``embed (C, K, d)``."""
    if len(embed) == 1:
        return F.embedding(codes, embed.squeeze(0))
    first = torch.arange(0, len(embed) * embed.shape[1], embed.shape[1], device=codes.device)
    return F.embedding(codes + first.view(-1, *[1] * (codes.dim() - 1)), embed.flatten(0, 1))
