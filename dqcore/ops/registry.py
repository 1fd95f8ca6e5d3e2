"""How a function becomes an op: schema, reference, fake, and the kernels that may stand in for the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqcore import backends

__all__ = ["Implementation", "Op", "in_backward", "is_plain", "is_traced", "register"]

#: Ops are defined here rather than by ``torch.library.custom_op``, whose wrapper costs 30 us a call on a CPU.
_LIBRARY = torch.library.Library("dqcore", "FRAGMENT")
#: By stem: what runs an op below autograd and autocast. It takes the op's arguments and their :class:`_Kind`.
implementations: dict[str, Callable[[tuple[Any, ...], Any], Any]] = {}


#: Types of tensors without a ``__torch_dispatch__`` of their own, and types of arguments that are no tensors.
PLAIN, NUMBERS = {Tensor, torch.nn.Parameter}, {int, float, bool, str, type(None)}


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
        """Call it without recording a gradient, as within an ``autograd.Function``; this saves the host's time.

        It also goes round PyTorch's dispatcher, unless something there has to see the call: a dispatch mode, a
        profiler, ``torch.jit.trace``, a tensor subclass.
        """
        with torch._C._AutoDispatchBelowAutograd():
            kind = _kind_of(args)
            if kind.plain and not _watched():
                return implementations[self.stem](args, kind)
            return self.overload(*args)

    @functools.cached_property
    def stem(self) -> str:
        """Its name without the package's."""
        return self.name.removeprefix("dqcore::")

    @functools.cached_property
    def overload(self) -> Any:
        """What ``torch.ops`` has under its name."""
        return getattr(torch.ops.dqcore, self.stem).default

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

    def implementation(args: tuple[Any, ...], kind: _Kind) -> Any:
        choice = fast.get(backends.route(kind.device))
        call = reference
        if choice is not None and not kind.double and backends.available(choice.kernel, kind.device):
            call = choice.run
        if kind.device is not None and torch.is_autocast_enabled(kind.device.type):
            with torch.autocast(kind.device.type, enabled=False):
                return call(*args)
        return call(*args)

    name, implementations[stem] = f"dqcore::{stem}", implementation
    _LIBRARY.define(
        stem + (schema or torch.library.infer_schema(reference, mutates_args=mutates_args)),
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    _LIBRARY.impl(stem, functools.partial(run, stem), "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    return Op(name)


def is_traced() -> bool:
    """Whether a graph is being made or a transform of functorch runs, so that no value can be read.

    Ops then go through PyTorch's dispatcher, see :meth:`Op.below_autograd`.
    """
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def in_backward() -> bool:
    """Whether this code runs inside a backward pass, where activation checkpointing computes a forward pass again.

    False while compiling, where it cannot be known.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def is_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether these are ordinary tensors (no subclass, not meta, no lazy negation), and nothing watches every op."""
    return _kind_of(tensors).plain and not _watched()


class _Kind(NamedTuple):
    """What the choice of an implementation depends on.

    Attributes:
        device: Of the first tensor among the arguments; None if there is none.
        double: Whether any tensor is float64.
        plain: Whether all tensors are ordinary: no subclass, not meta, no lazy negation.
    """

    device: Any
    double: bool
    plain: bool


def run(stem: str, *args: Any) -> Any:
    """Run an op below autograd, by the implementation for its arguments."""
    return implementations[stem](args, _kind_of(args))


def _watched() -> bool:
    """Whether a mode or a profiler sees every op that is called.

    ``torch.set_default_device`` is such a mode. Through the dispatcher it does not reach inside an op, as it should.
    """
    core = torch._C
    modes = core._len_torch_dispatch_stack() or core._len_torch_function_stack()
    return bool(modes or core._autograd._profiler_enabled() or core._is_tracing())


def _kind_of(args: Iterable[Any]) -> _Kind:
    tensors: list[Tensor] = []
    _collect(args, tensors)
    double, plain = False, not (tensors and tensors[0].is_meta)
    for tensor in tensors:
        double |= tensor.dtype is torch.float64
        plain &= type(tensor) in PLAIN and not tensor.is_neg()
    return _Kind(tensors[0].device if tensors else None, double, plain)


def _collect(args: Iterable[Any], tensors: list[Tensor]) -> None:
    for arg in args:
        kind = type(arg)
        if kind is Tensor or (kind not in NUMBERS and isinstance(arg, Tensor)):  # isinstance is slow for other types
            tensors.append(arg)
        elif isinstance(arg, (list, tuple)):
            _collect(arg, tensors)
