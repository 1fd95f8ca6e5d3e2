"""Entropy loss of a soft assignment to codes, without the matrix of all distances that it is defined on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dqcore.compat.plain import plain_is_wanted
from dqcore.ops.autocast import without_autocast

__all__ = ["entropy_loss"]

BLOCK = 2**18  # elements of a block of logits: 1 MB, of which a few lie in the cache
GPU_BLOCK = 2**25  # the same on a GPU, where small blocks cost a launch each: 128 MB, of which there are a few


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
    Cost: the assignment is computed twice, a block at a time; nothing of size ``(N, K)`` is kept.
    """
    if plain_is_wanted():
        return _plain_entropy(x, codebook, temperature, eps)
    return _Entropy.apply(x, codebook, temperature, eps)


def _plain_entropy(x: Tensor, codebook: Tensor, temperature: float, eps: float) -> Tensor:
    """The definition, with the matrix of all distances."""
    logits = torch.cat([logits for _, logits in _logits(x, codebook, temperature)])
    share = logits.softmax(1)
    mean = share.mean(0)
    return (mean * (mean + eps).log()).sum() - (share * logits.log_softmax(1)).sum(1).mean()


class _Entropy(torch.autograd.Function):
    """With logits a less the largest of their row, e = exp(a) and S = sum e: ``p = e / S``, entropy ``log S - <p, a>``.

    The largest logit and S are kept apart: at a low temperature their sum would round away what matters.
    """

    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, codebook: Tensor, temperature: float, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        total = torch.zeros(len(codebook), dtype=torch.float64, device=x.device)
        entropy = torch.zeros((), dtype=torch.float64, device=x.device)
        largest, weight = (torch.empty(len(x), dtype=wide, device=x.device) for _ in range(2))
        for rows, logits in _logits(x, codebook, temperature):
            torch.amax(logits, 1, out=largest[rows])
            share = _exp(logits, largest[rows])
            torch.sum(share, 1, out=weight[rows])
            total += weight[rows].reciprocal() @ share
            mean = logits.mul_(share).sum(1).div_(weight[rows])
            entropy += (weight[rows].log() - mean).sum(dtype=torch.float64)
        mean = total / len(x)
        ctx.save_for_backward(x, codebook, mean, largest, weight)
        ctx.temperature, ctx.eps = temperature, eps
        return (entropy / len(x) + (mean * (mean + eps).log()).sum()).to(x.dtype)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """``dL/da = p (v - <p, v>) / N`` where ``v = -a + d/dm (m log(m + eps))``."""
        x, codebook, mean, largest, weight = ctx.saved_tensors
        pull = ((mean + ctx.eps).log() + mean / (mean + ctx.eps)).to(weight)
        vectors, codes = _with_ones(x, weight.dtype), _with_ones(codebook, weight.dtype)
        scaled = (vectors / weight[:, None]).T.contiguous()
        to_x, to_codes = torch.empty_like(vectors), torch.zeros_like(codes.T)
        for rows, logits in _logits(x, codebook, ctx.temperature):
            share = _exp(logits, largest[rows])
            slope = torch.sub(pull, logits, out=logits).mul_(share)
            inner = slope.sum(1).div_(weight[rows])
            slope.addcmul_(share, inner[:, None], value=-1)
            torch.mm(slope, codes, out=to_x[rows])
            to_codes.addmm_(scaled[:, rows], slope)
        scale = grad.to(weight) * (2 / (ctx.temperature * len(x)))
        grad_x = (to_x[:, :-1] - to_x[:, -1:] * vectors[:, :-1]).mul_(scale).div_(weight[:, None])
        grad_codes = (to_codes.T[:, :-1] - to_codes.T[:, -1:] * codes[:, :-1]).mul_(scale)
        return grad_x.to(x.dtype), grad_codes.to(codebook.dtype), None, None


def _exp(logits: Tensor, largest: Tensor) -> Tensor:
    """Take the largest off the logits in place, and return their exponentials; below e^-60 nothing counts.

    Without that limit many would be subnormal numbers, with which a CPU computes a hundred times slower.
    """
    return logits.sub_(largest[:, None]).clamp_min_(-60).exp()


def _logits(x: Tensor, codebook: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of vectors, and ``-||x - e||^2 / temperature`` but for ``||x||^2``, which changes no assignment."""
    codes = codebook.to(torch.promote_types(x.dtype, torch.float32))
    offset = torch.linalg.vecdot(codes, codes) / -temperature
    step = max(1, (BLOCK if x.device.type == "cpu" else GPU_BLOCK) // len(codebook))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        yield rows, torch.addmm(offset, x[rows].to(codes), codes.T, alpha=2 / temperature)


def _with_ones(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A column of ones behind: a product with it also gives the sum of the other factor."""
    return torch.cat([x.to(dtype), x.new_ones(len(x), 1, dtype=dtype)], dim=1)
