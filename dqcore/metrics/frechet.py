"""Frechet distance of two sets of features: how alike two sets of images are, to a network."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["frechet_distance"]


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance of two normal distributions fitted to features.

    ``|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))``. The trace of the root is the sum of the singular values of
    the product of the centred features, so no root of a matrix is taken, and fewer samples than dimensions will do.
    The distance of few samples is too large; compare sets of equal numbers only.

    Args:
        x: ``(N, D)``, any dtype, at least 2 samples.
        y: ``(M, D)``, at least 2 samples.

    Returns:
        At least 0, up to rounding in float64.

    Raises:
        InputError: Shapes do not fit, there are too few samples, or features are not finite.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InputError(f"y: expected (M, D) features, M at least 2, like x {tuple(x.shape)}, got {tuple(y.shape)}")
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise InputError(f"{'y' if bool(x.isfinite().all()) else 'x'}: expected finite features")
    a, b = x.double(), y.double()
    means = (a.mean(0) - b.mean(0)).square().sum()
    a, b = (_at_most_square((each - each.mean(0)) / (len(each) - 1) ** 0.5) for each in (a, b))
    root = torch.linalg.svdvals(a @ b.T).sum()
    return float(means + a.square().sum() + b.square().sum() - 2 * root)


def _at_most_square(features: Tensor) -> Tensor:
    """A matrix with the same product ``X^T X``, of at most as many rows as columns."""
    return features if len(features) <= features.shape[1] else torch.linalg.qr(features, mode="r").R
