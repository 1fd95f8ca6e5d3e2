"""What the quantizers of this room share: the exact lookup, the straight-through gradient, and the two losses.

All of them compute ``z + (e - z)`` in this order, as the libraries do, so that a quantized vector has the same bits as
theirs wherever the code is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dqcore.backends import exact_float32_matmul, host_knows
from dqcore.compat.plain import plain_is_wanted, plain_lookup, plain_nearest
from dqcore.errors import InputError
from dqcore.ops.autocast import without_autocast
from dqcore.ops.code_sums import code_sums
from dqcore.ops.nearest_code import nearest_code

__all__ = [
    "Found",
    "as_map",
    "check_floats",
    "check_map",
    "check_map_shape",
    "counts_of",
    "lookup",
    "nearest",
    "one_hot",
]

#: Up to this many distances and elements of the codebook, one float64 product is faster than ``nearest_code``.
FEW_DISTANCES, FEW_ELEMENTS = 2**16, 2**17
#: A code this many times longer than the median may be left out of the search.
LONG = 8


class Found(NamedTuple):
    """What :func:`lookup` returns."""

    quantized: Tensor  # as z
    commitment: Tensor  # mean squared error, its gradient goes to z
    codebook: Tensor  # the same value, its gradient goes to the codes
    codes: Tensor  # (N,) int64, images row by row


def lookup(z: Tensor, codebook: Tensor, *, losses: bool = True) -> Found:
    """Replace every vector by its nearest code; the gradient of the result passes straight through to ``z``.

    Args:
        z: Vectors ``(N, D)`` or a feature map ``(B, D, H, W)``.
        codebook: ``(K, D)``.
        losses: Whether the two losses are needed; without them both are 0.
    """
    if plain_is_wanted():
        return Found(*plain_lookup(z, codebook))
    return Found(*_Lookup.apply(z, codebook, losses))


class _Lookup(torch.autograd.Function):
    """Keeps ``e - z``, so that a codebook that changes before the backward pass changes no gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, codebook: Tensor, losses: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = z if z.dim() == 2 else z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        codes = nearest(rows, codebook).clamp_min(0)  # a vector that is not finite: 0, as their argmin gives it
        vectors = torch.embedding(codebook, codes)
        difference = vectors.sub_(rows) if vectors.dtype == rows.dtype else vectors - rows
        ctx.shape, ctx.dtypes, ctx.num_codes = z.shape, (z.dtype, codebook.dtype), len(codebook)
        ctx.save_for_backward(difference, codes)
        ctx.mark_non_differentiable(codes)
        ctx.set_materialize_grads(False)
        error = _mean_square(difference) if losses else difference.new_zeros(())
        return z + _like(difference, z.shape), error, error.clone(), codes

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_commitment: Tensor | None, grad_codebook: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        difference, codes = ctx.saved_tensors
        grad_z, grad_codes, scale = grad, None, 2 / max(1, difference.numel())
        if ctx.needs_input_grad[0] and grad_commitment is not None:
            pull = _like(difference, ctx.shape)
            weight = grad_commitment * -scale
            grad_z = pull * weight if grad is None else torch.addcmul(grad, pull, weight)
        if ctx.needs_input_grad[1] and grad_codebook is not None:
            grad_codes = _sums(difference, codes, ctx.num_codes).mul_(grad_codebook * scale).to(ctx.dtypes[1])
        return None if grad_z is None else grad_z.to(ctx.dtypes[0]), grad_codes, None


def _like(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows ``(N, D)`` seen as a tensor of ``z``'s shape."""
    return rows if len(shape) == 2 else rows.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


def _mean_square(x: Tensor) -> Tensor:
    """Mean of the squares in float32 or wider, as a number of ``x``'s dtype; NaN for an empty ``x``.

    Row by row: the norm of two million numbers at once, added one after the other, is wrong by up to 1e-4.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=1, dtype=wide).square_().mean().div_(x.shape[1]).to(x.dtype)


def _sums(x: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """The sum of the rows of each code, ``(K, D)``, in float32 or wider; the codes are known to be good."""
    if x.device.type == "cpu":
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.zeros(num_codes, x.shape[1], dtype=wide).index_add_(0, codes, x.to(wide))
    return code_sums(x, codes, num_codes).sums


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """The exact nearest codes ``(N,)`` of ``x (N, D)``, as :func:`dqcore.ops.nearest_code`; quick for a few vectors."""
    if plain_is_wanted():
        return plain_nearest(x, codebook)
    x, codebook = x.detach(), codebook.detach()
    few = len(x) * len(codebook) <= FEW_DISTANCES and codebook.numel() <= FEW_ELEMENTS and len(codebook) > 1
    if few and host_knows(x) and codebook.device.type == "cpu":
        codes = _nearest_of_few(x, codebook)
        if codes is not None:
            return codes
    within = _within_reach(x, codebook) if host_knows(x) else None
    codes = nearest_code(x, codebook if within is None else codebook[within])
    return codes if within is None else within[codes].masked_fill(codes < 0, -1)


def _within_reach(x: Tensor, codebook: Tensor) -> Tensor | None:
    """The codes that can be nearest, where some are far longer than the others; None where all may be.

    A code longer than ``2 max ||x|| + min ||e||`` is farther from each vector than the shortest code. Moving averages
    make such codes of those that are never used, and ``nearest_code``'s float32 bound grows with the longest.
    """
    if len(x) == 0 or len(codebook) == 0:
        return None
    length = torch.linalg.vector_norm(codebook, dim=1, dtype=torch.promote_types(codebook.dtype, torch.float32))
    if not LONG * float(length.median()) < float(length.max()):
        return None
    length = torch.linalg.vector_norm(codebook, dim=1, dtype=torch.float64)
    largest, shortest = float(length.max()), float(length.min())
    if not largest < math.inf:
        return None
    reach = 1.01 * (2 * float(torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).max()) + shortest)
    return (length <= reach).nonzero()[:, 0] if reach < largest else None


@without_autocast
def _nearest_of_few(x: Tensor, codebook: Tensor) -> Tensor | None:
    """Codes by one plain product, or None where its rounding might decide between two of them, as on a tie.

    With unit roundoff u, a score ``||e||^2 - 2 x.e`` is off by at most ``(D + 3) u (||e||^2 + 2 ||x|| ||e||)``. The
    three terms of ``margin`` are more than twice that, more than the rounding of the float64 distances that define
    the answer, and more than what numbers too small for the dtype lose.
    """
    dtype = torch.float32 if exact_float32_matmul() else torch.float64
    if torch.float64 in (x.dtype, codebook.dtype):
        return None
    x, codebook = x.to(dtype), codebook.to(dtype)
    square = torch.linalg.vecdot(codebook, codebook)
    scores = torch.addmm(square, x, codebook.T, alpha=-2)
    smallest, codes = scores.topk(2, dim=1, largest=False)
    radius, limits = float(square.max()) ** 0.5, torch.finfo(dtype)
    length = torch.linalg.vector_norm(x, dim=1)
    margin = (length * (2 * radius)).add_(radius**2).mul_(2 * limits.eps * (x.shape[1] + 8))
    margin.addcmul_(length, length, value=2.0**-46).add_(limits.tiny * 2**10 * x.shape[1])
    settled = bool((smallest[:, 1] - smallest[:, 0] > margin).all())
    return codes[:, 0].clone() if settled else None


def check_map(name: str, x: Tensor, dim: int) -> None:
    """Raise unless ``x`` is a ``(B, dim, H, W)`` feature map of floating-point numbers."""
    check_map_shape(name, x, dim)
    check_floats(name, x)


def check_floats(name: str, x: Tensor) -> None:
    """Raise unless ``x`` holds floating-point numbers: others would be looked up, and no gradient would pass."""
    if not x.is_floating_point():
        raise InputError(f"{name}: expected floating-point numbers, got {str(x.dtype).removeprefix('torch.')}")


def check_map_shape(name: str, x: Tensor, dim: int) -> None:
    """Raise unless ``x`` is a ``(B, dim, H, W)`` feature map, of any numbers."""
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != dim:
        given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{name}: expected a (B, {dim}, H, W) feature map, got {given}")


def one_hot(codes: Tensor, num_codes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The codes as rows of a one-hot matrix ``(N, K)``, and their perplexity ``exp(H(p))``."""
    if plain_is_wanted():
        rows = (codes[:, None] == torch.arange(num_codes, device=codes.device)).to(dtype)
        share = rows.mean(0)
    else:
        rows = torch.zeros(len(codes), num_codes, dtype=dtype, device=codes.device).scatter_(1, codes[:, None], 1)
        share = counts_of(codes, num_codes).to(dtype) / len(codes)
    return rows, torch.exp(-torch.sum(share * torch.log(share + 1e-10)))


def counts_of(codes: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs, ``(K,)`` int64; unlike ``torch.bincount`` this makes no host wait for a GPU."""
    return torch.zeros(num_codes, dtype=codes.dtype, device=codes.device).scatter_add_(0, codes, torch.ones_like(codes))


def as_map(vectors: Tensor, shape: Sequence[int] | None) -> Tensor:
    """``(N, D)`` vectors as a map ``(B, D, H, W)``, given its shape ``(B, H, W, D)``; as they are without one."""
    return vectors if shape is None else vectors.view(*shape).permute(0, 3, 1, 2).contiguous()
