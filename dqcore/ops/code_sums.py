"""``code_sums``: how many vectors chose each code, and their sum; what an EMA codebook or its gradient needs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.registry import Implementation, register

__all__ = ["CodeSums", "code_sums", "code_sums_reference"]


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

    Gradient: of ``sums`` to ``x``. Deterministic.
    Cost: reads ``x`` once, no one-hot matrix.
    """
    check_tensor("x", x, dim=2)
    check_tensor("codes", codes, dim=1, dtypes=(torch.int64,))
    check_same_device(x=x, codes=codes)
    if len(codes) != len(x):
        raise InputError(f"codes: expected one for each of {len(x)} vectors, got {len(codes)}")
    if num_codes < 1:
        raise InputError(f"num_codes: expected at least 1, got {num_codes}")
    if (
        codes.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and len(codes)
        and int(codes.max()) >= num_codes
    ):
        raise InputError(f"codes: expected values below num_codes={num_codes}, got {int(codes.max())}")
    return CodeSums(*torch.ops.dqcore.code_sums(x, codes, num_codes))


def code_sums_reference(x: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """The specification; on the CPU, where rows are added in their order, also the fast path."""
    wide = torch.promote_types(x.dtype, torch.float32)
    row = torch.where(codes < 0, num_codes, codes)  # left-out vectors go to a row that is cut off
    sums = torch.zeros(num_codes + 1, x.shape[1], dtype=wide, device=x.device).index_add(0, row, x.to(wide))
    counts = torch.bincount(row, minlength=num_codes + 1).to(wide)
    return counts[:num_codes].clone(), sums[:num_codes].clone()


def _fake(x: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(num_codes, dtype=wide), x.new_empty(num_codes, x.shape[1], dtype=wide)


def _cuda(x: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    from dqcore.kernels.code_sums import code_sums_fwd

    return code_sums_fwd(x, codes, num_codes)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, codes, _ = inputs
    ctx.save_for_backward(codes)
    ctx.dtype = x.dtype  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, _: Tensor, grad_sums: Tensor) -> tuple[Tensor, None, None]:
    (codes,) = ctx.saved_tensors  # type: ignore[attr-defined]
    grad = grad_sums[codes.clamp_min(0)].masked_fill((codes < 0)[:, None], 0)
    return grad.to(ctx.dtype), None, None  # type: ignore[attr-defined]


_op = register("code_sums", code_sums_reference, fake=_fake, cuda=Implementation(_cuda, "triton"))
_op.register_autograd(_backward, setup_context=_setup_context)
