"""Entropy loss of a soft assignment to codes, without the matrix of all distances that it is defined on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["entropy_loss"]

BLOCK = 2**21  # elements of a block of distances: 8 MB


def entropy_loss(x: Tensor, codebook: Tensor, *, temperature: float = 0.01, eps: float = 1e-5) -> Tensor:
    """Mean entropy of each vector's soft assignment less the entropy of the mean assignment.

    The soft assignment of a vector is ``p = softmax_k(-||x - e_k||^2 / temperature)``. Small where every vector is sure
    of its code and all codes are used alike.

    Args:
        x: Vectors ``(N, D)``.
        codebook: ``(K, D)``.
        temperature: Divides the distances.
        eps: Added to the mean assignment inside its logarithm.

    Gradient: to both.
    Cost: the assignment is computed twice, 8 MB at a time; nothing of size ``(N, K)`` is kept.
    """
    return _Entropy.apply(x, codebook, temperature, eps)


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codebook: Tensor, temperature: float, eps: float) -> Tensor:
        total = torch.zeros(len(codebook), dtype=torch.float64, device=x.device)
        entropy = torch.zeros((), dtype=torch.float64, device=x.device)
        for _, log in _assignments(x, codebook, temperature):
            share = log.exp()
            total += share.sum(0)
            entropy -= torch.linalg.vecdot(share, log).sum(dtype=torch.float64)
        mean = total / len(x)
        ctx.save_for_backward(x, codebook, mean)
        ctx.temperature, ctx.eps = temperature, eps
        return (entropy / len(x) + (mean * (mean + eps).log()).sum()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """With logits a: ``dL/da = p (v - <p, v>) / N`` where ``v = -log p + d/dm (m log(m + eps))``."""
        x, codebook, mean = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        pull = ((mean + ctx.eps).log() + mean / (mean + ctx.eps)).to(wide)
        codes = codebook.to(wide)
        grad_x, grad_codes, weight = torch.empty_like(x, dtype=wide), torch.zeros_like(codes), torch.zeros_like(pull)
        for rows, log in _assignments(x, codebook, ctx.temperature):
            share = log.exp()
            slope = pull - log
            slope.sub_(torch.linalg.vecdot(share, slope)[:, None]).mul_(share)
            grad_x[rows] = (slope @ codes).sub_(slope.sum(1, keepdim=True) * x[rows])
            grad_codes.addmm_(slope.T, x[rows].to(wide))
            weight += slope.sum(0)
        grad_codes -= weight[:, None] * codes
        scale = grad.to(wide) * (2 / (ctx.temperature * len(x)))
        return (grad_x * scale).to(x.dtype), (grad_codes * scale).to(codebook.dtype), None, None


def _assignments(x: Tensor, codebook: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of vectors, and the logarithm of their soft assignment in float32; ``||x||^2`` cancels in it."""
    codes = codebook.to(torch.promote_types(x.dtype, torch.float32))
    offset = torch.linalg.vecdot(codes, codes) / -temperature
    step = max(1, BLOCK // len(codebook))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        yield rows, torch.addmm(offset, x[rows].to(codes), codes.T, alpha=2 / temperature).log_softmax(1)
