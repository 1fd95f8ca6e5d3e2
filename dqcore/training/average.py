"""An exponential moving average of the weights, for use after training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage(AveragedModel):
    """``w <- w + (1 - d) (v - w)`` with ``d = min(decay, (1 + n) / (10 + n))`` after n updates.

    Only parameters with a gradient are averaged. Other parameters and buffers are copied: an EMA codebook and its
    counts, which are buffers, are averages already.

    Args:
        model: The model in training; a copy of it is made.
        decay: Largest value of d, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=_average(decay), use_buffers=False)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        super().update_parameters(model)
        for averaged, current in zip(self.module.parameters(), model.parameters(), strict=True):
            if not current.requires_grad:
                averaged.copy_(current)


def _average(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        updates = int(count)
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + updates) / (10 + updates)))

    return update
