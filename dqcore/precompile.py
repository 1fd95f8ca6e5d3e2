"""``warmup``: compile and load what a step launches, before the step is captured or timed."""

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

#: Runs on a side stream before a capture, as ``torch.cuda.graph`` wants.
RUNS = 3


def warmup(step: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Compile and load every kernel that ``step(*args, **kwargs)`` launches, and leave no trace.

    The step runs forward and, if its result needs grad, backward: three times on a side stream where a tensor is on a
    GPU, at the end of which the host waits, else once. Then all is as before, bit for bit: parameters, buffers (an EMA
    codebook, counters), gradients, the arguments (a KV cache), the random state. So a capture may follow::

        dqcore.warmup(quantizer, features, grain)
        with torch.cuda.graph(graph):
            out = quantizer(features, grain)

    Args:
        step: A module, a bound method of one, or a function; modules and tensors are looked for in its closure and
            globals. It may run ``backward`` itself; an optimiser's step it must leave to the caller.
        args: Its arguments; tensors and modules in lists, dicts, tuples and dataclasses are found.
        kwargs: The same, by name.

    Raises:
        Exception: What the step raises, after everything was put back.

    A module that starts from data (``KMeans()``) starts anew afterwards: initialise it before.
    Cost: the memory of everything it can reach, once more.
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
            with torch.cuda.stream(side):
                for _ in range(RUNS):
                    _run(step, args, kwargs, reached.tensors)
                    reached.restore()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()


def _run(step: Callable[..., object], args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    """Forward, and backward as far as the tensors that are known, unless the step did that itself."""
    inputs = [tensor for tensor in tensors if tensor.requires_grad]
    for tensor in inputs:
        if tensor.is_leaf:
            tensor.grad = None
    found = _Reached()
    found.add(step(*args, **kwargs))
    outputs = [tensor for tensor in found.tensors if tensor.requires_grad]
    if outputs and inputs and not any(tensor.is_leaf and tensor.grad is not None for tensor in inputs):
        torch.autograd.grad(outputs, inputs, [torch.ones_like(out) for out in outputs], allow_unused=True)


class _Reached:
    """The tensors and modules that some values hold, and what they held."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.modules: list[nn.Module] = []
        self._seen: set[int] = set()

    def add(self, value: object) -> None:
        """Look through a value."""
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
        """Whatever happens within, everything is as before at the end."""
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
        """Put everything back: whole storages, so that no view is missed and no version counter moves."""
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
    """A module's own attributes, and the contents of those that are dicts: buffers, parameters, flags."""
    return {name: (value, dict(value) if type(value) is dict else None) for name, value in vars(module).items()}


def _parts(value: object) -> Iterator[object]:
    """What a container, dataclass, method or function holds."""
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
        for name in value.__code__.co_names:  # of globals not the functions: they lead everywhere
            if isinstance(held := value.__globals__.get(name), (Tensor, nn.Module, dict, list, tuple)):
                yield held
