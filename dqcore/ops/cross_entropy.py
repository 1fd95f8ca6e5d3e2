"""``cross_entropy``: what predicting each token costs, without a float32 copy of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore import backends
from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.reference.cross_entropy import cross_entropy_backward_reference, cross_entropy_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["cross_entropy"]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row, ``log(sum_v exp(logits_nv)) - logits[n, targets_n]``, in nats.

    Args:
        logits: ``(N, V)``, V at least 1; float16, bfloat16, float32 or float64; any strides.
        targets: ``(N,)`` int64, values in [0, V); same device.

    Returns:
        ``(N,)``, float32, float64 for float64 logits.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes or devices do not fit, or on the CPU a target is out of range. On a GPU its loss is NaN.

    Gradient: to ``logits``, in their dtype, ``softmax - one-hot``; computed in float32 from the logits.
    Determinism: the same bits in every run; a row does not depend on the others.
    Cost: forward reads the logits once, backward reads them once and writes as much.
    """
    check_tensor("logits", logits, dim=2)
    check_tensor("targets", targets, dim=1, dtypes=(torch.int64,))
    check_same_device(logits=logits, targets=targets)
    if len(targets) != len(logits) or logits.shape[1] < 1:
        raise InputError(
            f"targets: expected one for each row of logits, got shapes {tuple(targets.shape)} and {tuple(logits.shape)}"
        )
    known = len(targets) and backends.host_knows(targets)
    if known and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise InputError(
            f"targets: expected values in [0, {logits.shape[1]}), got {int(targets.min())} to {int(targets.max())}"
        )
    if backends.route(logits.device) == "cpu":  # PyTorch's own is the fast one here
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(wide, targets, reduction="none")
    losses: Tensor = torch.ops.dqcore.cross_entropy(logits, targets)[0]
    return losses


def _fake(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty(len(logits), dtype=wide), logits.new_empty(len(logits), dtype=wide)


def _fake_backward(grad: Tensor, logits: Tensor, targets: Tensor, lse: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _triton(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    from dqcore.kernels.cross_entropy import cross_entropy_fwd

    return cross_entropy_fwd(logits, targets)


def _triton_backward(grad: Tensor, logits: Tensor, targets: Tensor, lse: Tensor) -> Tensor:
    from dqcore.kernels.cross_entropy import cross_entropy_bwd

    return cross_entropy_bwd(grad, logits, targets, lse)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else a launch would fill zeros for that of the logarithms
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
    if grad is None:
        return None, None
    return torch.ops.dqcore.cross_entropy_backward(grad, *ctx.saved_tensors), None


register(
    "cross_entropy",
    cross_entropy_reference,
    fake=_fake,
    gpu=Implementation(_triton, "triton"),
).register_autograd(_backward, setup_context=_setup_context)

register(
    "cross_entropy_backward",
    cross_entropy_backward_reference,
    fake=_fake_backward,
    gpu=Implementation(_triton_backward, "triton"),
)
