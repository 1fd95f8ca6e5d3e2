"""The specification of ``nearest_code``.

The distance of a vector and a code is *defined* as the float64 sum of the squares of their exact differences, added
in the order of :func:`squared_distance`. So the nearest code does not depend on backend, tile size or run.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nearest_code_reference", "squared_distance"]


def nearest_code_reference(x: Tensor, codebook: Tensor, precision: str) -> Tensor:
    """Every distance in float64, for a block of vectors at a time; ``precision`` changes nothing here."""
    if x.dim() == 4:
        codes = nearest_code_reference(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), codebook, precision)
        return codes.view(x.shape[0], *x.shape[2:])
    block = 2**20  # elements of a temporary tensor
    codes_of_blocks = [torch.zeros(0, dtype=torch.int64, device=x.device)]
    for vectors in x.split(max(1, block // codebook.shape[0])):
        parts = codebook.split(max(1, block // max(1, vectors.shape[0] * x.shape[1])))
        distances = torch.cat([squared_distance(vectors[:, None], part) for part in parts], dim=1)
        codes_of_blocks.append(distances.nan_to_num(nan=torch.inf, posinf=torch.inf).argmin(1))
    return torch.cat(codes_of_blocks)


def squared_distance(x: Tensor, codes: Tensor) -> Tensor:
    """``||x - codes||^2`` over the last dimension in float64.

    The squares are padded with zeros to a power of two, then the second half is added to the first until one is left.
    """
    square = (x.double() - codes.double()).square()
    width = 1 << max(0, square.shape[-1] - 1).bit_length()
    square = torch.nn.functional.pad(square, (0, width - square.shape[-1]))
    while width > 1:
        width //= 2
        square = square[..., :width] + square[..., width:]
    return square[..., 0]
