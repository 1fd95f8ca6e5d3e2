"""The losses of pixels that a recipe may choose from."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PIXEL_LOSSES", "colour_error", "squared_error"]

#: JPEG's luma and colour differences (ITU-R BT.601) of red, green and blue.
LUMA_AND_COLOUR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
#: How much an error of a colour difference weighs, before it is squared, beside one of luma. Colour varies much less
#: than luma in photographs, so with equal weights a network learns it last, or never in a short run.
COLOUR_WEIGHT = 2.0


def squared_error(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Four times the mean squared error of ``(B, 3, H, W)`` values in [-1, 1], a scalar.

    The factor makes the commitment loss weigh about as much beside it as beside the absolute error.
    """
    return 4 * F.mse_loss(reconstruction, images)


def colour_error(images: Tensor, reconstruction: Tensor) -> Tensor:
    """:func:`squared_error` of luma and the two colour differences, with more weight on colour."""
    rows = zip(LUMA_AND_COLOUR, (1.0, COLOUR_WEIGHT, COLOUR_WEIGHT), strict=True)
    # Filled, not copied: the host would wait for a GPU.
    factors = [images.new_full((), weight * factor) for row, weight in rows for factor in row]
    error = F.conv2d(reconstruction - images, torch.stack(factors).view(3, 3, 1, 1))
    return 8 * error.square().mean()


#: By their names in the options; each takes images and reconstruction, ``(B, 3, H, W)`` float32 in [-1, 1].
PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": squared_error,
    "colour": colour_error,
}
