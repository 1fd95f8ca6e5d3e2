"""Which regions get how many codes, when the caller and not the router decides how many there are.

A *refinement* takes a region from granularity ``g`` to ``g + 1``. A router scores them all, ``(B, G - 1, h, w)``. The
higher the score, the more the region needs the refinement. Scores never rise with ``g``. The caller says how many
refinements there are: by the share of regions at each granularity, or by the number of codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["allocate", "counts_for_codes", "counts_for_ratio", "counts_wanted", "exact_share", "target_shares"]


def allocate(scores: Tensor, counts: Tensor) -> Tensor:
    """Give each granularity the asked number of regions: the regions with the highest scores get the finest.

    Args:
        scores: Scores of refinements, ``(B, G - 1, h, w)``, floating.
        counts: Number of regions of each granularity, int64, ``(B, G)``; each image's numbers sum to ``h * w``.

    Returns:
        Grain map, int64, ``(B, h, w)``. Ties go to the region that comes first in raster order.
    """
    limit = torch.finfo(scores.dtype)
    finite = scores.flatten(2).nan_to_num(nan=limit.min, posinf=limit.max, neginf=limit.min)
    grain = torch.zeros_like(finite[:, 0], dtype=torch.int64)
    for g in reversed(range(finite.shape[1])):
        free = finite[:, g].masked_fill(grain > 0, -torch.inf)
        rank = free.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen = rank < counts[:, g + 1, None]
        grain = torch.where(chosen & (grain == 0), g + 1, grain)
    return grain.view(scores.shape[0], *scores.shape[2:])


def target_shares(name: str, ratio: float | Sequence[float], num_granularities: int | None = None) -> tuple[float, ...]:
    """Check a ratio, given as ``name``, and return it as a tuple.

    Args:
        name: What the user calls it.
        ratio: Shares of the granularities above the coarsest, coarse to fine, each at least 0 and together at most 1;
            one number will do for two granularities.
        num_granularities: ``G``; None for as many as the ratio says.
    """
    listed = ratio.tolist() if hasattr(ratio, "tolist") else ratio  # NumPy's and PyTorch's too
    try:
        each = listed if isinstance(listed, Sequence) else [listed]
        shares = tuple(math.fsum([share]) for share in each)  # fsum refuses a text, which float would read
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected a share, or a list of them, got {ratio!r}") from error
    if num_granularities is not None and len(shares) != num_granularities - 1:
        raise InputError(
            f"{name}: expected {num_granularities - 1} shares, one for each granularity above the coarsest, got {ratio}"
        )
    if any(not share >= 0 for share in shares) or math.fsum(shares) > 1 + 1e-9:
        raise InputError(f"{name}: expected shares in [0, 1] with a sum of at most 1, got {ratio}")
    return shares


def counts_for_ratio(shares: Sequence[float], num_regions: int) -> list[int]:
    """Number of regions of each granularity, coarsest first.

    What is rounded to whole regions is the number of regions that are at least as fine as each granularity.
    """
    at_least = [num_regions] + [
        min(num_regions, math.floor(num_regions * math.fsum(shares[index:]) + 0.5)) for index in range(len(shares))
    ]
    return [more - less for more, less in zip(at_least, [*at_least[1:], 0], strict=True)]


def exact_share(scores: Tensor, shares: Sequence[float]) -> Tensor:
    """Grain map ``(B, h, w)`` in which each image has these shares, for scores ``(B, G - 1, h, w)``."""
    return allocate(scores, _same_counts(scores, counts_for_ratio(shares, scores[0, 0].numel())))


def counts_for_codes(scores: Tensor, num_codes: Tensor) -> Tensor:
    """Number of regions of each granularity for a number of codes: as many codes as possible, but not more.

    At first, refinements are made in falling order of their scores while the codes suffice. Then the counts nearest to
    that are taken which use as many codes as possible.

    Args:
        scores: Scores of refinements, ``(B, G - 1, h, w)``.
        num_codes: Number of codes of each image, int64, ``(B,)``, at least ``h * w``.

    Returns:
        Counts, int64, ``(B, G)``, on the device of ``scores``.
    """
    num_refinements, num_regions = scores.shape[1], scores[0, 0].numel()
    grains = torch.arange(num_refinements, device=scores.device).repeat_interleave(num_regions)
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)
    grains = grains[order]  # the granularity that each refinement starts from
    spent = (3 * 4**grains).cumsum(1)
    made = spent <= (num_codes.to(scores.device) - num_regions)[:, None]
    reached = torch.stack([(made & (grains == g)).sum(1) for g in range(num_refinements)], 1).tolist()
    counts = [
        _nearest_counts(int(budget), num_regions, [num_regions, *above])
        for budget, above in zip(num_codes.tolist(), reached, strict=True)
    ]
    return torch.tensor(counts, dtype=torch.int64, device=scores.device)


def counts_wanted(
    batch: int,
    regions: int,
    num_granularities: int,
    ratio: float | Sequence[float] | None,
    num_codes: int | Tensor | None,
) -> Callable[[Tensor], Tensor] | None:
    """How to get the number of regions of each granularity, ``(B, G)``, from scores; None if neither is asked for.

    Raises:
        InputError: Both ``ratio`` and ``num_codes``, or one out of range.
    """
    if ratio is not None and num_codes is not None:
        raise InputError("num_codes: expected either ratio or num_codes, got both")
    if ratio is not None:
        counts = counts_for_ratio(target_shares("ratio", ratio, num_granularities), regions)
        return lambda scores: _same_counts(scores, counts)
    if num_codes is not None:
        try:
            budget = torch.as_tensor(num_codes).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:  # a word, or more than an int64 holds
            raise InputError(f"num_codes: expected an int or an int64 tensor, got {num_codes!r}") from error
        if budget.is_floating_point() or budget.dtype == torch.bool or budget.shape not in ((), (batch,)):
            raise InputError(f"num_codes: expected an int or an int64 tensor of shape ({batch},), got {num_codes}")
        if int(budget.min()) < regions:
            raise InputError(f"num_codes: expected at least {regions}, one for each region, got {num_codes}")
        return lambda scores: counts_for_codes(scores, budget.long().expand(batch))
    return None


def _same_counts(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Counts of every image ``(B, G)``, on the device of ``scores``; filled there, so that the host does not wait."""
    return torch.stack([torch.full(scores.shape[:1], count, device=scores.device) for count in counts], 1)


def _nearest_counts(budget: int, num_regions: int, at_least: list[int]) -> list[int]:
    """Counts with as many codes as the budget allows, close to what is wanted.

    Args:
        budget: Number of codes.
        num_regions: Number of regions.
        at_least: For each granularity, the wanted number of regions that are at least as fine.
    """
    wanted = [more - less for more, less in zip(at_least, [*at_least[1:], 0], strict=True)]
    codes = min(budget, num_regions * 4 ** (len(wanted) - 1))
    codes -= (codes - num_regions) % 3  # each refinement adds a multiple of three codes
    splits = (_split(total, num_regions, wanted) for total in range(codes, num_regions - 1, -3))
    return next(counts for counts in splits if counts is not None)


def _split(codes: int, regions: int, wanted: list[int]) -> list[int] | None:
    """Counts of regions that have exactly ``codes`` codes, the finest as near to ``wanted`` as possible, or None."""
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
