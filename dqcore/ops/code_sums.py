"""``code_sums``: how many vectors chose each code, and their sum; what an EMA codebook or its gradient needs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqcore.backends import host_knows
from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor, reaches
from dqcore.ops.reference.code_sums import code_sums_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["CodeSums", "code_sums"]


class CodeSums(NamedTuple):
    """Per-code statistics of a batch."""

    counts: Tensor  # (K,) float32
    sums: Tensor  # (K, D) float32


def code_sums(x: Tensor, codes: Tensor, num_codes: int) -> CodeSums:
    """Counts and vector sums per code, ``n_k = |{n: c_n = k}|`` and ``s_k = sum_{n: c_n = k} x_n``.

    Args:
        x: Vectors ``(N, D)``; float16, bfloat16, float32 or float64.
        codes: The code of each vector, ``(N,)`` int64 in ``[0, num_codes)``; a negative code leaves its vector out.
        num_codes: K, the size of the codebook.

    Returns:
        ``counts (K,)`` and ``sums (K, D)``, accumulated in float32 (float64 for float64 vectors).

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes or devices do not fit, or on the CPU a code is too large. A GPU leaves its vector out.

    Gradient: of ``sums`` to ``x``. Deterministic.
    Cost: reads ``x`` once, no one-hot matrix.
    """
    check_tensor("x", x, dim=2)
    check_tensor("codes", codes, dim=1, dtypes=(torch.int64,))
    check_same_device(x=x, codes=codes)
    if len(codes) != len(x):
        raise InputError(f"codes: expected one for each of {len(x)} vectors, got {len(codes)}")
    if reaches(x.shape[0], 2**31):
        raise InputError(f"x: expected fewer than 2**31 vectors, got {len(x)}")
    if num_codes < 1:
        raise InputError(f"num_codes: expected at least 1, got {num_codes}")
    if host_knows(codes) and len(codes) and int(codes.max()) >= num_codes:
        raise InputError(f"codes: expected values below num_codes={num_codes}, got {int(codes.max())}")
    return CodeSums(*torch.ops.dqcore.code_sums(x, codes, num_codes))


def _fake(x: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(num_codes, dtype=wide), x.new_empty(num_codes, x.shape[1], dtype=wide)


def _triton(x: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    from dqcore.kernels.code_sums import code_sums_fwd

    return code_sums_fwd(x, codes, num_codes)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, codes, _ = inputs
    ctx.save_for_backward(codes)
    ctx.dtype = x.dtype


def _backward(ctx: Any, _: Tensor, grad_sums: Tensor) -> tuple[Tensor, None, None]:
    (codes,) = ctx.saved_tensors
    grad = grad_sums[codes.clamp_min(0)].masked_fill((codes < 0)[:, None], 0)
    return grad.to(ctx.dtype), None, None


register("code_sums", code_sums_reference, fake=_fake, gpu=Implementation(_triton, "triton")).register_autograd(
    _backward, setup_context=_setup_context
)
