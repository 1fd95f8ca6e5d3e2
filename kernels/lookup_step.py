"""A training step of a quantizer's forward pass: lookup, loss and the codebook's update, by the launchers of each.

As one call that comes again it makes all buffers that nobody else sees as one, and is the launches alone (``replay``).
"""

from __future__ import annotations

from torch import Tensor

from dqcore.kernels.codebook_update import codebook_update_fwd
from dqcore.kernels.dynamic_lookup import dynamic_lookup_fwd
from dqcore.kernels.lookup_loss import lookup_loss_fwd
from dqcore.kernels.replay import replayed


@replayed
def lookup_step_fwd(
    maps: list[Tensor],
    grain: Tensor,
    state: tuple[Tensor, Tensor, Tensor, Tensor],
    commitment: float,
    setting: tuple[float, float, float | None],
) -> tuple[Tensor, ...]:
    """Quantized map, code map, loss, its part with ``commitment``, mean error, slope; writes to ``state``.

    Args:
        maps: Feature maps, coarse to fine.
        grain: ``(B, h, w)`` int64.
        state: Codes and padding row ``(K + 1, D)``, which are searched as they are before the update, cluster sizes,
            ages and averages of the sums, as ``codebook_update_fwd`` takes them.
        commitment: Weight of the encoder's part of the loss.
        setting: Decay, eps and threshold.
    """
    codebook = state[0][:-1]
    codes, quantized, error, counts, sums = dynamic_lookup_fwd(maps, grain, codebook, True)
    losses = lookup_loss_fwd(error, codes, codebook.shape[1], commitment)
    regions = grain if len(maps) > 1 else None
    codebook_update_fwd(state, (counts, sums), maps, regions, codes, error, setting)
    return quantized, codes, *losses
