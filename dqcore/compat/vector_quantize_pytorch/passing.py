"""How a gradient passes from the code's vector to the vector that was looked up, and the commitment to it."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.backends import host_knows
from dqcore.compat.plain import plain_is_wanted
from dqcore.compat.vector_quantize_pytorch.search import unit

__all__ = ["pass_and_commit", "pass_direction", "unit_vectors"]

#: A vector shorter than this is only scaled, not rotated; and it is divided by this, not by its length.
SHORT = 1e-6
#: Elements of a part that is worked on at once on a CPU: 256 kB in float32.
PART = 2**16


def pass_and_commit(x: Tensor, code: Tensor, rotate: bool, commit: bool) -> tuple[Tensor, Tensor | None]:
    """``code`` with a gradient to ``x``, and the mean squared distance of both, whose gradient goes to ``x`` alone.

    Args:
        x: Vectors ``(..., d)``.
        code: The code's vector for each; gets no gradient.
        rotate: The gradient is turned as ``x`` must be turned to reach its code, and scaled by the ratio of their
            lengths (arXiv:2410.06424, section 4.2); else it passes unchanged.
        commit: Whether the second result is wanted, else it is None.
    """
    if plain_is_wanted():
        return _plain_pass(x, code.detach(), rotate), F.mse_loss(x, code.detach()) if commit else None
    passed: tuple[Tensor, Tensor | None] = _Pass.apply(x, code.detach(), rotate, commit)
    return passed


def pass_direction(x: Tensor, code: Tensor, variance: float) -> Tensor:
    """``x`` plus a step of the distance to its code in the direction there, with noise on the direction."""
    error = code - x
    length = error.norm(dim=-1, keepdim=True)
    direction = unit(error + sqrt(variance) * torch.randn_like(error)).detach()
    return x + direction * length


def unit_vectors(x: Tensor) -> Tensor:
    """:func:`unit` of ``(..., N, d)``, with a gradient that reads big ``x`` once."""
    vectors: Tensor = unit(x) if plain_is_wanted() else _Unit.apply(x)
    return vectors


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _by_parts(unit, x, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors

        def back(own: Tensor, some: Tensor) -> Tensor:
            length = torch.linalg.vector_norm(own, dim=-1, keepdim=True)
            vectors = own / length.clamp_min(SHORT)
            along = (some * vectors).sum(-1, keepdim=True).masked_fill(length < SHORT, 0)
            return (some - vectors * along) / length.clamp_min(SHORT)

        return _by_parts(back, x, x, grad)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, code: Tensor, rotate: bool, commit: bool) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, code)
        ctx.rotate = rotate
        ctx.set_materialize_grads(False)
        wide = torch.promote_types(x.dtype, torch.float32)
        squares: list[Tensor] = []

        def passed(own: Tensor, target: Tensor) -> Tensor:
            if commit:
                squares.append(F.mse_loss(own.to(wide), target.to(wide), reduction="sum"))
            return _rotated(own, target) if rotate else target

        result = _by_parts(passed, code, x, code)
        loss = None
        if commit:
            square = squares[0] if len(squares) == 1 else torch.stack(squares).sum()
            loss = square / max(1, x.numel())
            if not torch.is_autocast_enabled(x.device.type):  # which takes such losses in float32
                loss = loss.to(x.dtype)
        return result.clone() if result is code else result, loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        x, code = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        pull = None if grad_loss is None else grad_loss.to(wide) * (2 / max(1, x.numel()))

        def back(own: Tensor, target: Tensor, some: Tensor) -> Tensor:
            own, target, some = own.to(wide), target.to(wide), some.to(wide)
            passed = _rotated_back(some, own.detach(), target) if ctx.rotate else some
            return passed if pull is None else torch.addcmul(passed, own - target, pull)

        if grad is None:
            return None if pull is None else ((x - code) * pull).to(x.dtype), None, None, None
        return _by_parts(back, x, x, code, grad).to(x.dtype), None, None, None


def _by_parts(function: Callable[..., Tensor], like: Tensor, *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, a tensor as ``like``; of big ``(..., N, d)`` on a CPU parts that stay in its cache."""
    shape = like.shape
    if like.numel() <= 2 * PART or like.device.type != "cpu":
        return function(*tensors)
    result = torch.empty_like(like)
    flat = [tensor.flatten(0, -3) for tensor in (result, *tensors)]
    samples, rows = max(1, PART // (shape[-2] * shape[-1])), max(1, PART // shape[-1])
    for first in range(0, len(flat[0]), samples):
        for row in range(0, shape[-2], rows):
            part, *inputs = (tensor[first : first + samples, row : row + rows] for tensor in flat)
            part.copy_(function(*inputs))
    return result


def _rotated(x: Tensor, code: Tensor) -> Tensor:
    """``x`` turned and scaled onto its code, which is ``code`` itself but for very short ``x``."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    short = length < SHORT
    known = host_knows(x) and not plain_is_wanted()
    if known and not bool(short.any()):
        return code
    return torch.where(short, _turned(x, x, code), code)


def _turned(x: Tensor, own: Tensor, code: Tensor) -> Tensor:
    """``x`` turned and scaled as ``own`` must be to reach its code; linear in ``x``."""
    length = torch.linalg.vector_norm(own, dim=-1, keepdim=True).clamp_min(SHORT)
    size = torch.linalg.vector_norm(code, dim=-1, keepdim=True)
    here, there = own / length, code / size.clamp_min(SHORT)
    middle = unit(here + there)
    turned = x - 2 * (x * middle).sum(-1, keepdim=True) * middle + 2 * (x * here).sum(-1, keepdim=True) * there
    return turned * (size / length)


def _plain_pass(x: Tensor, code: Tensor, rotate: bool) -> Tensor:
    """``code`` with its gradient to ``x``, without a function of our own."""
    own = x.detach()
    passed = _turned(x, own, code) if rotate else x
    return (_rotated(own, code) if rotate else code) + (passed - passed.detach())


def _rotated_back(grad: Tensor, x: Tensor, code: Tensor) -> Tensor:
    """The gradient of :func:`_rotated` to ``x``, rotation and scale held constant.

    With u and q the unit vectors of ``x`` and ``code``, w that of u + q: ``(g - 2 (g.w) w + 2 (g.q) u) |code| / |x|``.
    """
    grad = grad.contiguous()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(SHORT)
    size = torch.linalg.vector_norm(code, dim=-1, keepdim=True)
    reach = size.clamp_min(SHORT)
    middle = (x / length).addcdiv_(code, reach)  # divided, so that opposite directions cancel
    double = torch.linalg.vector_norm(middle, dim=-1, keepdim=True).clamp_min(SHORT).square()
    scale = size / length
    along_middle = (grad * middle).sum(-1, keepdim=True) * (-2 * scale / double)
    along_code = (grad * code).sum(-1, keepdim=True) * (2 * scale / (reach * length))
    return (grad * scale).addcmul_(middle, along_middle).addcmul_(x, along_code)
