"""Batch normalization whose batch is that of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqcore.distributed import num_processes, sum_with_gradient

__all__ = ["JoinedBatchNorm2d"]


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """In training, mean and variance are those of all processes' images: the result is that of the joined batch.

    PyTorch's ``SyncBatchNorm`` does this on GPUs alone. Where one process computes, this is ``nn.BatchNorm2d``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(B, C, H, W)``; every process calls this with at least one image.

        Gradient: of the sum of all processes' losses, each process's part of it.
        """
        if not self.training or num_processes() == 1:
            return super().forward(x)
        values = x.float()
        here = values.new_full((1,), values.numel() / values.shape[1])
        *sums, count = sum_with_gradient(torch.cat([values.sum((0, 2, 3)), here])).split([values.shape[1], 1])
        mean = sums[0] / count
        centred = values - mean[:, None, None]
        variance = sum_with_gradient(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the averages that evaluation uses."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
