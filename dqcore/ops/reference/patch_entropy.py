"""The specification of ``patch_entropy``, and the two constants that all its implementations share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

__all__ = ["GREY", "NO_MASS", "patch_entropy_reference"]

#: Weights of red, green and blue in a grey value.
GREY = (0.2989, 0.5870, 0.1140)

#: A histogram of a smaller mass counts as empty: all its pixels are about 12 sigma or more from every bin. The original
#: formula's 1e-40 is a subnormal float32, which becomes 0 where arithmetic flushes subnormal numbers; this does not.
NO_MASS = 1e-30


def patch_entropy_reference(
    images: Tensor, patch_size: int, low: float, high: float, num_bins: int, sigma: float
) -> Tensor:
    """In float64, one bin at a time: its kernel at every pixel, averaged over each patch."""
    grey = images.double()
    if images.shape[1] == 3:
        grey = GREY[0] * grey[:, :1] + GREY[1] * grey[:, 1:2] + GREY[2] * grey[:, 2:]
    centres = torch.linspace(low, high, num_bins, dtype=torch.float64).tolist()
    histogram = torch.cat([avg_pool2d(torch.exp(-0.5 * ((grey - c) / sigma).square()), patch_size) for c in centres], 1)
    mass = histogram.sum(1, keepdim=True)
    share = torch.where(mass < NO_MASS, 0, histogram / mass)
    return -torch.special.xlogy(share, share).sum(1).to(torch.promote_types(images.dtype, torch.float32))
