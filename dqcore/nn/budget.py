"""The budget loss: what keeps a learned router at its target share of fine regions (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dqcore.errors import InputError
from dqcore.nn.allocation import target_shares

__all__ = ["BudgetLoss", "ReleasedBudgetLoss"]


class BudgetLoss(nn.Module):
    """``weight * sum_g (rho_g - r_g)^2`` over the granularities above the coarsest; ``rho_g`` is the batch's share.

    The shares are means over the batch, so that single images may vary freely.

    Args:
        ratio: Target shares ``r_g``, coarse to fine; a number for two granularities.
        weight: The paper's lambda; 10 is best on FFHQ (supplement, table 1).
    """

    def __init__(self, ratio: float | Sequence[float], weight: float = 10.0) -> None:
        super().__init__()
        num_granularities = len(ratio) + 1 if isinstance(ratio, Sequence) else 2
        self.ratio, self.weight = target_shares("ratio", ratio, num_granularities), weight

    def forward(self, gate: Tensor) -> Tensor:
        """Gate ``(B, G, h, w)``, one-hot or probabilities over axis 1, coarsest first, to a scalar.

        Gradient: through the gate, to the router.
        """
        return self.weight * self._squared_errors(gate).sum()

    def _squared_errors(self, gate: Tensor) -> Tensor:
        """``(G - 1,)``, coarse to fine."""
        if gate.dim() != 4 or gate.shape[1] != len(self.ratio) + 1:
            raise InputError(f"gate: expected (B, {len(self.ratio) + 1}, h, w), got {tuple(gate.shape)}")
        shares = gate.mean((0, 2, 3))[1:]
        return (shares - shares.new_tensor(self.ratio)).square()


class ReleasedBudgetLoss(BudgetLoss):
    """As the authors' code has it: twice ours for two granularities; for more, only the finest is weighted.

    Takes the arguments of :class:`BudgetLoss`.
    """

    def forward(self, gate: Tensor) -> Tensor:
        """As :meth:`BudgetLoss.forward`."""
        *median, fine = self._squared_errors(gate).unbind()
        if not median:
            return 2 * self.weight * fine
        return sum(median, start=self.weight * fine)
