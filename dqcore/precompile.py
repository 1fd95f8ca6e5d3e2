"""``warmup``: compile and load the kernels that a step launches, before the step is captured or timed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["warmup"]

#: How often a step runs on a side stream before a capture; PyTorch recommends three times.
RUNS = 3
#: How PyTorch's error begins when the graph of a result was used before.
USED_UP = "Trying to backward through the graph a second time"


def warmup(step: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Compile and load every kernel that ``step(*args, **kwargs)`` launches, and leave no trace.

    The step runs forward and, if its result requires grad, backward. If any tensor is on a GPU it runs three times on a
    side stream, and the host waits for the end; else it runs once. Afterwards everything is as before, bit for bit:
    parameters, buffers (an EMA codebook, counters), gradients, the arguments (a KV cache), the random state. So a
    capture may follow::

        dqcore.warmup(quantizer, features, grain)
        with torch.cuda.graph(graph):
            out = quantizer(features, grain)

    Args:
        step: A module, a bound method of one, or a function, whose closure and globals are searched for modules and
            tensors. It may call ``backward`` or ``torch.autograd.grad`` itself, but not an optimiser: an optimiser's
            state is not put back.
        args: Its arguments; tensors and modules in lists, dicts, tuples and dataclasses are found.
        kwargs: The same, by name.

    Raises:
        Exception: Whatever the step raises, after everything was put back.

    A codebook that its first batch initialises (``KMeans()``) is put back too, and still needs its first batch:
    initialise it before. While the step runs, everything that it can reach takes its memory twice.
    """
    reached = _Reached()
    for value in (step, args, kwargs):
        reached.add(value)
    gpus = sorted({tensor.device.index for tensor in reached.tensors if tensor.device.type == "cuda"})
    with reached.kept(), torch.random.fork_rng(devices=gpus):
        if not gpus:
            _run(step, args, kwargs, reached.tensors)
            return
        with torch.cuda.device(gpus[0]):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(side):
                    for _ in range(RUNS):
                        _run(step, args, kwargs, reached.tensors)
                        reached.restore()
            finally:  # after an error too, kernels may still be writing to what is put back
                torch.cuda.current_stream().wait_stream(side)
                torch.cuda.synchronize()


def _run(step: Callable[..., object], args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    """Run forward, and backward to those of ``tensors`` that require grad, unless the step did that itself."""
    inputs = [tensor for tensor in tensors if tensor.requires_grad]
    for tensor in inputs:
        if tensor.is_leaf:
            tensor.grad = None
    found = _Reached()
    found.add(step(*args, **kwargs))
    outputs = [tensor for tensor in found.tensors if tensor.requires_grad]
    if outputs and inputs and not any(tensor.is_leaf and tensor.grad is not None for tensor in inputs):
        try:
            torch.autograd.grad(outputs, inputs, [torch.ones_like(out) for out in outputs], allow_unused=True)
        except RuntimeError as error:  # a step that asked autograd.grad for its gradients leaves no other sign
            if not str(error).startswith(USED_UP):
                raise


class _Reached:
    """The tensors and modules that can be reached from some values, and what they contained at first."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.modules: list[nn.Module] = []
        self._seen: set[int] = set()

    def add(self, value: object) -> None:
        """Find the tensors and modules in a value."""
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, nn.Module):
            self.modules += value.modules()
            for tensor in (*value.parameters(), *value.buffers()):
                self.add(tensor)
        else:
            for part in _parts(value):
                self.add(part)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Put everything back at the end, whatever happened within."""
        self._grads = [(tensor, tensor.grad) for tensor in self.tensors if tensor.is_leaf]
        self._modules = [(module, _attributes(module)) for module in self.modules]
        held = (*self.tensors, *(grad for _, grad in self._grads if grad is not None))
        storages = {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in held)}
        self._storages = [(storage, storage.clone()) for storage in storages.values() if storage.nbytes()]
        try:
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Put everything back. Whole storages are copied: that misses no view and changes no version counter."""
        for storage, before in self._storages:
            storage.copy_(before)
        for tensor, grad in self._grads:
            tensor.grad = grad
        for module, attributes in self._modules:
            for name, (value, content) in attributes.items():
                if content is not None:
                    value.clear()
                    value.update(content)
                module.__dict__[name] = value
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]


def _attributes(module: nn.Module) -> dict[str, tuple[Any, dict | None]]:
    """A module's attributes by name, each with a copy if it is a dict, as the module's buffers and parameters are."""
    return {name: (value, dict(value) if type(value) is dict else None) for name, value in vars(module).items()}


def _parts(value: object) -> Iterator[object]:
    """The values that a container, a dataclass, a method or a function holds."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, field.name, None) for field in dataclasses.fields(value))
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif inspect.ismethod(value):
        yield from (value.__self__, value.__func__)
    elif inspect.isfunction(value):
        yield from (value.__defaults__ or (), value.__kwdefaults__ or {})
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # a cell may still be empty
                yield cell.cell_contents
        for name in value.__code__.co_names:  # not into global functions: from there everything can be reached
            if isinstance(held := value.__globals__.get(name), (Tensor, nn.Module, dict, list, tuple)):
                yield held
