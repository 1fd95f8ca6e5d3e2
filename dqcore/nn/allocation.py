"""Which regions get how many codes, when the caller and not the router decides how many there are.

A router says how much each region wants each *step*, from granularity ``g`` to ``g + 1``: step scores
``(B, G - 1, h, w)``, never rising with ``g``. The caller says how many: a share of the regions, or a number of codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["allocate", "counts_for_codes", "counts_for_ratio", "target_shares"]


def allocate(scores: Tensor, counts: Tensor) -> Tensor:
    """Grain map with exactly the asked number of regions at each granularity; the highest scores get the finest.

    Args:
        scores: How much a region wants the step from granularity g to g + 1, ``(B, G - 1, h, w)``, floating.
        counts: Regions of each granularity, int64, ``(B, G)`` with rows that sum to ``h * w``.

    Returns:
        Grain map, int64, ``(B, h, w)``. Ties go to the region that comes first in raster order.
    """
    limit = torch.finfo(scores.dtype)
    steps = scores.flatten(2).nan_to_num(nan=limit.min, posinf=limit.max, neginf=limit.min)
    grain = torch.zeros_like(steps[:, 0], dtype=torch.int64)
    for step in reversed(range(steps.shape[1])):
        free = steps[:, step].masked_fill(grain > 0, -torch.inf)
        rank = free.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen = rank < counts[:, step + 1, None]
        grain = torch.where(chosen & (grain == 0), step + 1, grain)
    return grain.view(scores.shape[0], *scores.shape[2:])


def target_shares(name: str, ratio: float | Sequence[float], num_granularities: int) -> tuple[float, ...]:
    """Check a ratio: shares of the granularities above the coarsest, coarse to fine, each >= 0 and together <= 1."""
    shares = tuple(ratio) if isinstance(ratio, Sequence) else (float(ratio),)
    if len(shares) != num_granularities - 1:
        raise InputError(
            f"{name}: expected {num_granularities - 1} shares, one for each granularity above the coarsest, got {ratio}"
        )
    if any(not share >= 0 for share in shares) or math.fsum(shares) > 1 + 1e-9:
        raise InputError(f"{name}: expected shares in [0, 1] with a sum of at most 1, got {ratio}")
    return shares


def counts_for_ratio(shares: Sequence[float], num_regions: int) -> list[int]:
    """Regions of each granularity, coarsest first; the number at or above each one is rounded to the nearest."""
    at_least = [num_regions] + [
        min(num_regions, math.floor(num_regions * math.fsum(shares[index:]) + 0.5)) for index in range(len(shares))
    ]
    return [more - less for more, less in zip(at_least, [*at_least[1:], 0], strict=True)]


def counts_for_codes(scores: Tensor, num_codes: Tensor) -> Tensor:
    """Regions of each granularity that come closest to a number of codes without more of them.

    Steps are taken in falling order of score while they fit; the counts nearest to that which meet the budget win.

    Args:
        scores: Step scores, ``(B, G - 1, h, w)``.
        num_codes: Codes of each image, int64, ``(B,)``, at least ``h * w``.

    Returns:
        Counts, int64, ``(B, G)``, on the device of ``scores``.
    """
    num_steps, num_regions = scores.shape[1], scores[0, 0].numel()
    step = torch.arange(num_steps, device=scores.device).repeat_interleave(num_regions)
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)
    step = step[order]
    spent = (3 * 4**step).cumsum(1)
    taken = spent <= (num_codes.to(scores.device) - num_regions)[:, None]
    reached = torch.stack([(taken & (step == index)).sum(1) for index in range(num_steps)], 1).tolist()
    counts = [
        _nearest_counts(int(budget), num_regions, [num_regions, *above])
        for budget, above in zip(num_codes.tolist(), reached, strict=True)
    ]
    return torch.tensor(counts, dtype=torch.int64, device=scores.device)


def _nearest_counts(budget: int, num_regions: int, at_least: list[int]) -> list[int]:
    """Counts with the most codes within the budget, close to the wanted numbers of regions at or above each one."""
    wanted = [more - less for more, less in zip(at_least, [*at_least[1:], 0], strict=True)]
    codes = min(budget, num_regions * 4 ** (len(wanted) - 1))
    codes -= (codes - num_regions) % 3  # each step adds a multiple of three codes
    splits = (_split(total, num_regions, wanted) for total in range(codes, num_regions - 1, -3))
    return next(counts for counts in splits if counts is not None)


def _split(codes: int, regions: int, wanted: list[int]) -> list[int] | None:
    """Numbers of regions that hold exactly ``codes`` codes, the finest as close to ``wanted`` as can be, or None."""
    finest = len(wanted) - 1
    if finest == 0:
        return [regions] if codes == regions else None
    for count in sorted(range(regions + 1), key=lambda count: abs(count - wanted[finest])):
        rest, others = codes - count * 4**finest, regions - count
        if others <= rest <= others * 4 ** (finest - 1):
            counts = _split(rest, others, wanted[:finest])
            if counts is not None:
                return [*counts, count]
    return None
