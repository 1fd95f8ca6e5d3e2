"""The loss of a lookup, from the squared error of each cell: one launch, or two for a large map.

Sums are taken in a fixed order. Reference: ``dqcore.ops.lookup_loss``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import bound, cdiv, on_device
from dqcore.kernels.launch import launch
from dqcore.kernels.replay import replayed

BLOCK = 4096
ALONE = 2**16  # cells that one program adds up alone
PARTS = 256


@triton.jit(do_not_specialize=["N", "span"])
def _lookup_loss_parts_kernel(error, codes, sums, numbers, N, span, BLOCK: tl.constexpr):
    """The error, and the number of coded cells, of each part of the map."""
    part = tl.program_id(0)
    begin = part.to(tl.int64) * span
    total = tl.zeros([BLOCK], tl.float32)
    number = tl.zeros([BLOCK], tl.int32)
    for start in range(0, bound(span), BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = (i < span) & (begin + i < N)
        total += tl.load(error + begin + i, mask=inside, other=0.0)
        number += (tl.load(codes + begin + i, mask=inside, other=-1) >= 0).to(tl.int32)
    tl.store(sums + part, tl.sum(total, 0))
    tl.store(numbers + part, tl.sum(number, 0).to(tl.int64))


@triton.jit(do_not_specialize=["commitment", "N", "D"])
def _lookup_loss_kernel(
    error, codes, loss, pull, mean, slope, commitment, N, D, COUNTED: tl.constexpr, BLOCK: tl.constexpr
):
    """The loss; ``COUNTED`` says that ``error`` and ``codes`` are sums and numbers of parts."""
    total = tl.zeros([BLOCK], tl.float32)
    number = tl.zeros([BLOCK], tl.int64)
    for start in range(0, bound(N), BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(error + i, mask=i < N, other=0.0)
        code = tl.load(codes + i, mask=i < N, other=0 if COUNTED else -1)
        number += code if COUNTED else (code >= 0).to(tl.int64)
    numbers = tl.maximum(tl.sum(number, 0), 1).to(tl.float32) * D
    value = tl.div_rn(tl.sum(total, 0), numbers)
    tl.store(mean, value)
    tl.store(pull, value * commitment)
    tl.store(loss, value * commitment + value)
    tl.store(slope, tl.div_rn(commitment + tl.zeros_like(numbers), numbers))


@replayed
def lookup_loss_fwd(error: Tensor, codes: Tensor, dim: int, commitment: float) -> tuple[Tensor, ...]:
    """``error`` and ``codes (B, H, W)`` -> loss, its part with ``commitment``, mean error, slope; float32 scalars."""
    values = [torch.empty((), dtype=torch.float32, device=error.device) for _ in range(4)]
    error, codes, cells = error.contiguous(), codes.contiguous(), error.numel()
    with on_device(error):
        counted = cells > ALONE
        if counted:
            sums = torch.empty(PARTS, dtype=torch.float32, device=error.device)
            numbers = torch.empty(PARTS, dtype=torch.int64, device=error.device)
            span = cdiv(cells, PARTS)
            launch(_lookup_loss_parts_kernel, (PARTS,))(
                *(error, codes, sums, numbers, cells, span),
                BLOCK=1024,
                num_warps=4,
                enable_fp_fusion=True,
            )
            error, codes, cells = sums, numbers, PARTS
        launch(_lookup_loss_kernel, (1,))(
            *(error, codes, *values, commitment, cells, dim),
            COUNTED=counted,
            BLOCK=PARTS if counted else BLOCK,
            num_warps=4 if counted else 16,
            enable_fp_fusion=True,
        )
    return tuple(values)
