"""Rank correlation: whether one quantity rises with another, on whatever scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["spearman"]


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation, the Pearson correlation of the ranks; tied values share the mean of their ranks.

    Args:
        x: Any numbers; read in raster order.
        y: As many numbers.

    Returns:
        In [-1, 1]; NaN where all values of ``x`` or of ``y`` are equal, or one is NaN.
    """
    if x.numel() != y.numel() or x.numel() < 2:
        raise InputError(f"y: expected as many values as x, at least 2, got {x.numel()} and {y.numel()}")
    if bool(x.isnan().any()) or bool(y.isnan().any()):  # a sort would give it a rank
        return math.nan
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, float64; ties get their mean rank."""
    _, place, counts = torch.unique(values.flatten().double(), return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double() - 1
    return (last - (counts - 1) / 2)[place]
