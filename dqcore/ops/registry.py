"""How a function becomes an op: schema, reference, fake, and the kernels that may stand in for the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dqcore import backends

__all__ = ["Implementation", "Op", "register"]

#: Ops are defined here rather than by ``torch.library.custom_op``, whose wrapper costs 30 us a call on a CPU.
_LIBRARY = torch.library.Library("dqcore", "FRAGMENT")
#: What runs an op, by its stem, below autograd and autocast.
implementations: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Implementation:
    """A fast stand-in for a reference: same arguments, same results in the same order.

    Attributes:
        run: The function.
        kernel: What has to be available for it.
    """

    run: Callable[..., Any]
    kernel: backends.Kernel


@dataclass(frozen=True)
class Op:
    """A registered op, by its name ``dqcore::<stem>``."""

    name: str

    def below_autograd(self, *args: Any) -> Any:
        """Call it where nobody asks for its gradient, as within an ``autograd.Function``: saves the host's time."""
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args)

    @functools.cached_property
    def overload(self) -> Any:
        """What ``torch.ops`` has under its name."""
        return getattr(torch.ops.dqcore, self.name.removeprefix("dqcore::")).default

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Give it a gradient, as ``torch.library.register_autograd``."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context, lib=_LIBRARY)


def register(
    stem: str,
    reference: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    cpu: Implementation | None = None,
    gpu: Implementation | None = None,
    mutates_args: Sequence[str] = (),
    schema: str | None = None,
) -> Op:
    """Define ``torch.ops.dqcore.<stem>``.

    Every call takes the implementation that :func:`dqcore.backends.route` names, where that is available and no tensor
    is float64; else the reference, which is the op's specification and test oracle. Autocast does not reach inside: an
    op computes in the precision that its own contract says.

    Args:
        stem: The name of the op.
        reference: Takes the schema's arguments and returns its results.
        fake: The same for tensors without values: makes empty results of the right shape and dtype.
        cpu: The fast implementation for tensors on the CPU.
        gpu: The fast implementation for tensors on a GPU.
        mutates_args: The arguments that a call writes to.
        schema: Arguments and results in torch's notation; by default as the annotations of ``reference`` say.
    """
    fast = {"cpu": cpu, "gpu": gpu}

    def implementation(*args: Any) -> Any:
        device, double = _device(args)
        choice = fast.get(backends.route(device))
        run = reference
        if choice is not None and not double and backends.available(choice.kernel, device):
            run = choice.run
        if device is not None and torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, enabled=False):
                return run(*args)
        return run(*args)

    name, implementations[stem] = f"dqcore::{stem}", implementation
    _LIBRARY.define(
        stem + (schema or torch.library.infer_schema(reference, mutates_args=mutates_args)),
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    _LIBRARY.impl(stem, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    return Op(name)


def _device(args: Iterable[Any]) -> tuple[Any, bool]:
    """The device of the first tensor among the arguments, None if there is none; whether any tensor is float64."""
    device, double = None, False
    for arg in args:
        if isinstance(arg, Tensor):
            where, wide = arg.device, arg.dtype is torch.float64
        elif isinstance(arg, (list, tuple)):
            where, wide = _device(arg)
        else:
            continue
        device, double = device or where, double or wide
    return device, double
