"""The specification of ``code_sums``, which is also its fast path on the CPU: ``index_add`` adds vectors in order."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["code_sums_reference"]


def code_sums_reference(x: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Counts ``(K,)`` and sums ``(K, D)`` of the vectors ``x (N, D)`` by their codes ``(N,)``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # A vector without a code is added to an extra last row of the sums, which is then cut off.
    row = torch.where(codes < 0, num_codes, codes)
    sums = torch.zeros(num_codes + 1, x.shape[1], dtype=wide, device=x.device).index_add(0, row, x.to(wide))
    counts = torch.bincount(row, minlength=num_codes + 1).to(wide)
    return counts[:num_codes].clone(), sums[:num_codes].clone()
