"""``lookup_loss``: the loss of a vector quantizer, from the squared error of each cell."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.reference.lookup_loss import lookup_loss_reference
from dqcore.ops.registry import Implementation, is_traced, register

__all__ = ["LookupLoss", "lookup_loss"]


class LookupLoss(NamedTuple):
    """What :func:`lookup_loss` returns; scalars of the error's dtype."""

    loss: Tensor
    commitment: Tensor
    codebook: Tensor


def lookup_loss(error: Tensor, codes: Tensor, dim: int, commitment: float) -> LookupLoss:
    """The mean squared error of the cells with a code, and ``commitment`` times it.

    Args:
        error: Squared error of each cell, ``(B, H, W)`` float32 or float64; 0 where there is no code.
        codes: ``(B, H, W)`` int64; negative for no code.
        dim: D, at least 1, by which the mean is divided, too.
        commitment: beta, the weight of the encoder's part.

    Returns:
        ``loss``, the sum of the other two; ``commitment``, beta times the mean; ``codebook``, the mean.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes or devices do not fit, or ``dim`` is less than 1.

    Gradient: of ``loss`` and ``commitment`` to ``error``, that of the part with beta alone.
    Determinism: sums are taken in a fixed order. Cost: reads both maps once; on a GPU one launch, two for large maps.
    """
    check_tensor("error", error, dim=3, dtypes=(torch.float32, torch.float64))
    check_tensor("codes", codes, dim=3, dtypes=(torch.int64,))
    check_same_device(error=error, codes=codes)
    if codes.shape != error.shape:
        raise InputError(f"codes: expected shape {tuple(error.shape)}, as error, got {tuple(codes.shape)}")
    if dim < 1:
        raise InputError(f"dim: expected at least 1, got {dim}")
    return loss_of_checked(error, codes, dim, commitment)


def loss_of_checked(error: Tensor, codes: Tensor, dim: int, commitment: float) -> LookupLoss:
    """:func:`lookup_loss` without its checks."""
    eager = not is_traced()
    if eager and error.requires_grad and torch.is_grad_enabled():
        return LookupLoss(*_EagerLoss.apply(error, codes, dim, commitment))
    call = _op.below_autograd if eager else torch.ops.dqcore.lookup_loss
    return LookupLoss(*call(error, codes, dim, commitment)[:3])


def _fake(error: Tensor, codes: Tensor, dim: int, commitment: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return error.new_empty(()), error.new_empty(()), error.new_empty(()), error.new_empty(())


def _triton(error: Tensor, codes: Tensor, dim: int, commitment: float) -> tuple[Tensor, ...]:
    from dqcore.kernels.lookup_loss import lookup_loss_fwd

    return lookup_loss_fwd(error, codes, dim, commitment)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[3])
    ctx.shape = inputs[0].shape


def gradient_of_error(
    slope: Tensor, shape: torch.Size, loss: Tensor | None, commitment: Tensor | None
) -> Tensor | None:
    """The gradient of ``error``, the same number at each cell, from those of ``loss`` and ``commitment``."""
    if loss is not None and commitment is not None:
        loss = loss + commitment
    grad = commitment if loss is None else loss
    return None if grad is None else (grad * slope).expand(shape)


def _backward(ctx: Any, loss: Tensor | None, commitment: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    (slope,) = ctx.saved_tensors
    return gradient_of_error(slope, ctx.shape, loss, commitment), None, None, None


class _EagerLoss(torch.autograd.Function):
    """The op with its gradient, in half of the host's time that ``torch.library``'s autograd takes."""

    @staticmethod
    def forward(ctx: Any, error: Tensor, codes: Tensor, dim: int, commitment: float) -> tuple[Tensor, ...]:
        found = _op.below_autograd(error, codes, dim, commitment)
        _setup_context(ctx, (error,), found)
        return found[:3]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _backward(ctx, *grads)


_op = register(
    "lookup_loss",
    lookup_loss_reference,
    fake=_fake,
    gpu=Implementation(_triton, "triton"),
)
_op.register_autograd(_backward, setup_context=_setup_context)
