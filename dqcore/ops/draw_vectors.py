"""``draw_vectors``: vectors of a batch that comes in parts, from which unused codes are revived after the last part.

Gradient: none. Deterministic: the same vectors as from the batch as a whole, on every device.
Cost: on a GPU one launch a part, and the host does not wait.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dqcore.ops.reference.draw_vectors import draw_vectors_reference
from dqcore.ops.registry import Implementation, is_traced, register

__all__ = ["draw_vectors"]


def draw_vectors(
    maps: Sequence[Tensor],
    grain: Tensor,
    codes: Tensor,
    error: Tensor,
    seed: Tensor,
    number: int,
    *,
    before: int = 0,
    earlier: Tensor | None = None,
    pool: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw vectors without replacement from what was looked up, each with the same chance.

    Arguments are not checked: :class:`dqcore.codebook.draw.Looked` made them of a lookup.

    Args:
        maps: The feature maps that were looked up, coarse to fine, ``(B, D, h * 2**g, w * 2**g)``.
        grain: The grain map, ``(B, h, w)`` int64.
        codes: Its codes ``(B, H, W)`` int64, negative where a cell's vector is left out.
        error: Its errors ``(B, H, W)``, each divided by the cells that its code fills.
        seed: Scalar int64, the same for all parts of a batch.
        number: The most vectors to draw.
        before: Cells of the finest grid that come before these in the batch, as far as the host knows their number.
        earlier: The rest of that number where a device computed it, scalar int64; None for 0.
        pool: What the earlier parts gave: the three results. Empty at the first part.

    Returns:
        Random numbers ``(n,)`` int64, descending, -1 for fillers, which come last; vectors ``(n, D)`` and squared
        distances to the nearest codes ``(n,)``, float32, 0 for fillers. ``n`` is ``number``, or all cells and rows of
        the pool if these are fewer: it does not depend on values, so that the host need not wait.
    """
    given = (list(maps), grain, codes, error, seed, earlier, list(pool), before, number)
    if is_traced():
        return torch.ops.dqcore.draw_vectors(*given)
    return _op.below_autograd(*given)


def _fake(
    maps: list[Tensor], grain: Tensor, codes: Tensor, error: Tensor, seed: Tensor, earlier: Tensor | None,
    pool: list[Tensor], before: int, number: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    count = min(number, codes.numel() + (len(pool[0]) if pool else 0))
    floats = grain.new_empty((count, maps[0].shape[1]), dtype=torch.float32)
    return grain.new_empty(count), floats, grain.new_empty(count, dtype=torch.float32)


def _triton(*args: object) -> tuple[Tensor, Tensor, Tensor]:
    from dqcore.kernels.draw_vectors import draw_vectors_fwd

    return draw_vectors_fwd(*args)  # type: ignore[arg-type]


_op = register("draw_vectors", draw_vectors_reference, fake=_fake, gpu=Implementation(_triton, "triton"))
