"""How a function becomes an op: schema, reference, fake, and the kernels that may stand in for the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from dqcore import backends

__all__ = ["Implementation", "register"]


@dataclass(frozen=True)
class Implementation:
    """A fast stand-in for a reference: same arguments, same result."""

    run: Callable[..., Any]
    kernel: backends.Kernel


def register(
    stem: str,
    reference: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    cpu: Implementation | None = None,
    cuda: Implementation | None = None,
    mutates_args: Sequence[str] = (),
) -> CustomOpDef:
    """Define ``torch.ops.dqcore.<stem>`` with the schema of ``reference``, which writes to ``mutates_args`` alone.

    Every call takes the implementation of the device its tensors lie on, where that is available and no tensor is
    float64; else the reference, which is the op's specification and test oracle.
    """
    fast = {"cpu": cpu, "cuda": cuda}

    def implementation(*args: Any) -> Any:
        tensors = list(_tensors(args))
        device = tensors[0].device
        choice = fast.get(backends.route(device))
        if choice is None or not backends.available(choice.kernel, device):
            return reference(*args)
        if any(tensor.dtype == torch.float64 for tensor in tensors):
            return reference(*args)
        return choice.run(*args)

    schema = torch.library.infer_schema(reference, mutates_args=mutates_args)
    op = torch.library.custom_op(f"dqcore::{stem}", implementation, mutates_args=mutates_args, schema=schema)
    op.register_fake(fake)
    return op


def _tensors(args: Iterable[Any]) -> Iterable[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)
