"""The specification of ``codebook_update``: moving averages, and unused codes revived by vectors drawn from the batch.

Which vectors are drawn depends on the cluster sizes and on where they lie in the batch, and on nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.ops.reference.draw_vectors import draw, mix, multiples

__all__ = [
    "Update",
    "codebook_update_reference",
    "distinct",
    "is_new",
    "move_averages",
    "revive",
    "seed_of",
    "smoothed",
]


class Update(NamedTuple):
    """The arguments of the op by name, in the order of its schema, which knows no structures.

    Shapes, dtypes and meanings: :func:`dqcore.ops.codebook_update`.
    """

    weight: Tensor
    cluster_size: Tensor
    idle: Tensor
    embed_sum: Tensor | None
    counts: Tensor
    sums: Tensor
    maps: list[Tensor]
    grain: Tensor
    codes: Tensor
    error: Tensor
    keys: Tensor | None
    decay: float
    eps: float
    threshold: float | None


def codebook_update_reference(
    weight: Tensor,
    cluster_size: Tensor,
    idle: Tensor,
    embed_sum: Tensor | None,
    counts: Tensor,
    sums: Tensor,
    maps: list[Tensor],
    grain: Tensor,
    codes: Tensor,
    error: Tensor,
    keys: Tensor | None,
    decay: float,
    eps: float,
    threshold: float | None,
) -> None:
    """Move the averages and the codes, the first K rows of ``weight``; then revive codes below the threshold."""
    seed = seed_of(cluster_size)  # of the state before the update
    share = move_averages(cluster_size, idle, counts, decay)
    if embed_sum is not None:
        embed_sum.lerp_(sums, share)
        weight[:-1].copy_(torch.where(share > 0, embed_sum / smoothed(cluster_size, eps)[:, None], weight[:-1]))
    if threshold is None or codes.numel() == 0:
        return
    unused = cluster_size < threshold * cluster_size.mean()
    codes = codes if keys is None else keys
    key, vectors, distance = draw(maps, grain, codes, error, 0, len(counts), seed, keys)
    fresh = distinct(torch.cat([weight[:-1], vectors]), torch.cat([~unused, is_new(key >= 0, vectors, distance)]))
    chosen, replaced = revive(unused, vectors, fresh[len(counts) :])
    for rows in (weight[:-1],) if embed_sum is None else (weight[:-1], embed_sum):
        rows.copy_(torch.where(replaced[:, None], chosen, rows))
    cluster_size.masked_fill_(replaced, 1)


def move_averages(cluster_size: Tensor, idle: Tensor, counts: Tensor, decay: float) -> Tensor:
    """Move the averages of the counts; return the share of the new batch in an average, 0 for an empty batch."""
    some = counts.any()
    share = some.to(counts.dtype) * (1 - decay)
    cluster_size.lerp_(counts, share)
    idle.add_(some).masked_fill_(counts > 0, 0)
    return share


def smoothed(cluster_size: Tensor, eps: float) -> Tensor:
    """Cluster sizes with ``eps`` added to each, scaled to the same sum (Laplace)."""
    total = cluster_size.sum()
    return (cluster_size + eps) / (total + len(cluster_size) * eps) * total


def revive(unused: Tensor, vectors: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """Give the n-th unused code the n-th fresh vector: a row for each code, and which codes are replaced."""
    order = (~fresh).byte().argsort(stable=True)
    turn = unused.cumsum(0) - 1
    return vectors[order[turn.clamp(0, len(vectors) - 1)]], unused & (turn < fresh.sum())


def is_new(valid: Tensor, vectors: Tensor, distance: Tensor) -> Tensor:
    """Which vectors no code has already, up to a thousandth of how far the vectors lie apart, ``(n,)`` bool."""
    number = valid.sum().clamp_min(1)
    away = torch.where(valid[:, None], vectors - vectors.sum(0) / number, 0)
    return valid & (distance > 1e-6 * (away.square().sum() / number))


def seed_of(cluster_size: Tensor) -> Tensor:
    """A scalar int64 that differs from one training batch to the next: the sum of the averages' bits."""
    return cluster_size.float().view(torch.int32).sum()


def distinct(vectors: Tensor, valid: Tensor) -> Tensor:
    """Which of the valid rows of ``vectors (n, D)`` are the first with their values, ``(n,)`` bool.

    Rows are compared by a 64-bit hash: two different rows count as one with a chance of ``2**-64``.
    """
    bits = (vectors.float() + 0.0).contiguous().view(torch.int32).long()  # + 0.0: both zeros have the same bits
    place = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    number = torch.arange(len(vectors), device=bits.device)
    key, order = torch.where(valid, mix(bits + multiples(place)).sum(1), number).sort(stable=True)
    again = torch.zeros_like(valid)
    again[1:] = key[1:] == key[:-1]
    return valid & ~torch.zeros_like(valid).scatter(0, order, again)
