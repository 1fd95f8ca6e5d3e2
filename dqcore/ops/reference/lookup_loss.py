"""The specification of ``lookup_loss``."""

from __future__ import annotations

from torch import Tensor

__all__ = ["lookup_loss_reference"]


def lookup_loss_reference(
    error: Tensor, codes: Tensor, dim: int, commitment: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, its commitment part, the mean error, and how the loss grows with the error of a cell."""
    numbers = (codes >= 0).sum().clamp_min(1) * dim
    mean = error.sum() / numbers
    return (1 + commitment) * mean, commitment * mean, mean.clone(), commitment / numbers.to(error.dtype)
