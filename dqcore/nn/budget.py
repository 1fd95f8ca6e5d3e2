"""The budget loss, which keeps a learned router near its target shares of fine regions (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dqcore.distributed import num_processes, sum_with_gradient
from dqcore.errors import InputError
from dqcore.nn.allocation import target_shares

__all__ = ["BudgetLoss", "ReleasedBudgetLoss"]


class BudgetLoss(nn.Module):
    """``weight * sum_g (rho_g - r_g)^2`` over the granularities above the coarsest.

    ``rho_g`` is the share of granularity g in the whole batch, so that single images may differ from the target; in
    training that is the batch of all processes, which must have equal parts.

    Args:
        ratio: Target shares ``r_g``, coarse to fine; a number for two granularities.
        weight: The paper's lambda; on FFHQ 10 is best (supplement, table 1).
    """

    def __init__(self, ratio: float | Sequence[float], weight: float = 10.0) -> None:
        super().__init__()
        self.ratio, self.weight = target_shares("ratio", ratio), weight

    def forward(self, gate: Tensor) -> Tensor:
        """The weighted loss of a batch.

        Args:
            gate: One-hot or probabilities over axis 1, coarsest first, ``(B, G, h, w)``.

        Returns:
            Scalar.

        Gradient: through the gate, to the router.
        """
        return self.weight * self._squared_errors(gate).sum()

    def _squared_errors(self, gate: Tensor) -> Tensor:
        """``(rho_g - r_g)^2`` of each granularity above the coarsest, ``(G - 1,)``."""
        if gate.dim() != 4 or gate.shape[1] != len(self.ratio) + 1:
            raise InputError(f"gate: expected (B, {len(self.ratio) + 1}, h, w), got {tuple(gate.shape)}")
        shares = gate.mean((0, 2, 3))[1:]
        if self.training:
            shares = sum_with_gradient(shares) / num_processes()
        # Number by number: a tensor of them would be copied to a GPU, for which the host waits.
        return torch.stack([share - target for share, target in zip(shares, self.ratio, strict=True)]).square()


class ReleasedBudgetLoss(BudgetLoss):
    """The budget loss of the authors' code; the arguments are those of :class:`BudgetLoss`.

    For two granularities it is twice :class:`BudgetLoss`. For more, only the error of the finest is multiplied by
    ``weight``.
    """

    def forward(self, gate: Tensor) -> Tensor:
        """The weighted loss of a batch; see :meth:`BudgetLoss.forward`."""
        *coarser, finest = self._squared_errors(gate).unbind()
        if not coarser:
            return 2 * self.weight * finest
        return sum(coarser, start=self.weight * finest)
