"""An exponential moving average of the weights, for use after training."""

from __future__ import annotations

import torch
from torch import nn
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
        super().__init__(model, use_buffers=False)
        self.decay = decay
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights.

        PyTorch's own method copies ``n`` to the weights' device and back, for which the host waits. Here it stays on
        the CPU.
        """
        updates = int(self.n_averaged)
        parameters = list(zip(self.module.parameters(), model.parameters(), strict=True))
        moved = [pair for pair in parameters if updates and pair[1].requires_grad]
        if moved:
            averaged, current = map(list, zip(*moved, strict=True))
            torch._foreach_lerp_(averaged, current, 1.0 - min(self.decay, (1 + updates) / (10 + updates)))
        copied = [pair for pair in parameters if not (updates and pair[1].requires_grad)]
        for kept, present in (*copied, *zip(self.module.buffers(), model.buffers(), strict=True)):
            kept.copy_(present)
        self.n_averaged += 1
