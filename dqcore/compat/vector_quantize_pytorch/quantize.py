"""The lookup of a batch: exact where the nearest code is wanted, else with the similarities of all codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.compat.vector_quantize_pytorch.search import (
    gumbel_noise,
    lookup,
    most_similar,
    similarities,
    top_codes,
    unit,
)

__all__ = ["Found", "Wish", "find"]

Transform = Callable[[Tensor], Tensor]


class Found(NamedTuple):
    """What a lookup gives."""

    vectors: Tensor  # (C, B, N, d), with top-k (C, B, N, k, d); float32
    codes: Tensor  # (C, B, N) or (C, B, N, k) int64
    similarities: Tensor | None  # (C, B, N, K), if wished for


class Wish(NamedTuple):
    """How codes are chosen."""

    cosine: bool  # by the product, not by the distance
    temperature: float = 0.0  # codes are drawn from the softmax of similarities over this; 0 takes the most similar
    top: int | None = None  # how many codes of each vector, None for one
    transform: Transform | None = None  # makes codes for every vector: from (C, K, d) to (C, B, N, K, d)
    similarities: bool = False  # all of them are needed
    soft: float = 0.0  # the vectors get the gradient of the softmax over similarities, with this temperature


def find(z: Tensor, embed: Tensor, wish: Wish) -> Found:
    """Codes of the vectors ``z (C, B, N, d)``, float32, and their vectors in ``embed (C, K, d)``."""
    rows = z.flatten(1, 2)
    if wish == Wish(wish.cosine):
        codes = most_similar(rows.detach(), embed.detach(), wish.cosine).view(z.shape[:-1])
        return Found(lookup(embed, codes), codes, None)
    scores, own = None, None
    if wish.transform is not None:
        own = wish.transform(embed).flatten(1, 2)
        own = unit(own) if wish.cosine else own
        scores = _own_similarities(rows, own, wish.cosine)
    elif wish.similarities or wish.temperature > 0 or wish.soft > 0:
        scores = similarities(rows, embed, wish.cosine)
    codes = _choose(rows, embed, scores, wish)
    if own is not None:
        index = codes if wish.top else codes.unsqueeze(-1)
        picked = own.gather(-2, index.unsqueeze(-1).expand(*index.shape, own.shape[-1]))
        vectors = picked if wish.top else picked.squeeze(-2)
    else:
        vectors = lookup(embed, codes)
    if wish.soft > 0 and scores is not None:
        blend = (scores / wish.soft).softmax(-1) @ embed.detach()  # its share of the gradient is the chosen code's
        vectors = vectors + (blend - blend.detach())
    shape = z.shape[1:3]
    return Found(
        vectors.unflatten(1, shape), codes.unflatten(1, shape), None if scores is None else scores.unflatten(1, shape)
    )


def _choose(rows: Tensor, embed: Tensor, scores: Tensor | None, wish: Wish) -> Tensor:
    """Codes ``(C, M)``, or ``(C, M, k)``."""
    with torch.no_grad():
        if scores is not None and (wish.temperature > 0 or wish.transform is not None):
            if wish.temperature > 0:
                scores = scores / wish.temperature + gumbel_noise(scores)
            return scores.argmax(-1) if wish.top is None else scores.topk(wish.top, dim=-1).indices
        if wish.top is not None:
            return top_codes(rows, embed, wish.cosine, wish.top)
        return most_similar(rows.detach(), embed.detach(), wish.cosine)


def _own_similarities(rows: Tensor, own: Tensor, cosine: bool) -> Tensor:
    """Similarity of every vector with its own codes ``(C, M, K, d)``."""
    if cosine:
        return torch.einsum("hnd,hncd->hnc", rows, own)
    return -F.pairwise_distance(rows.unsqueeze(-2), own)
