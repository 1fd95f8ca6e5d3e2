"""Interpreted kernels may touch no memory but that of the tensors they were given: a GPU would find noise or fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_spans = np.zeros((0, 2), np.uint64)  # begins and ends of the tensors of the present launch, sorted, none overlapping


def watch() -> None:
    """From here on a load, store or atomic operation outside of all tensors of its launch is an ``IndexError``."""
    from triton.runtime import interpreter

    kind = interpreter.InterpreterBuilder
    kind.create_masked_load = _checked(kind.create_masked_load, 0, 1)
    kind.create_masked_store = _checked(kind.create_masked_store, 0, 2)
    kind.create_atomic_rmw = _checked(kind.create_atomic_rmw, 1, 3)
    kind.create_atomic_cas = _checked(kind.create_atomic_cas, 0)
    interpreter.GridExecutor._init_args_hst = _spanned(interpreter.GridExecutor._init_args_hst)


def _spanned(prepare: Any) -> Any:
    def run(self: Any, *args: Any) -> Any:
        global _spans
        values, named = prepare(self, *args)
        _spans = _joined(_tensors([*values, *named.values()]))
        return values, named

    return run


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _joined(tensors: Iterator[torch.Tensor]) -> np.ndarray:
    """First and end address of each tensor, ``(n, 2)``; those that overlap count as one."""
    spans: list[list[int]] = []
    for begin, end in sorted(_span(tensor) for tensor in tensors if tensor.numel()):
        if spans and begin < spans[-1][1]:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([begin, end])
    return np.array(spans, np.uint64).reshape(-1, 2)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _check(pointers: Any, where: Any) -> None:
    addresses = pointers.data
    if where is not None and not where.all():
        addresses = addresses[where]
    if not addresses.size:
        return
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    low, high = addresses.min(), addresses.max()
    span = np.searchsorted(_spans[:, 0], low, "right") - 1
    if span >= 0 and high + np.uint64(size) <= _spans[span, 1]:
        return
    span = np.searchsorted(_spans[:, 0], addresses, "right") - 1
    outside = (span < 0) | (addresses + np.uint64(size) > _spans[span, 1])
    if outside.any():
        raise IndexError(f"{outside.sum()} of {addresses.size} addresses are in no tensor of this launch: "
                         f"{addresses[outside].ravel()[:4]}, tensors at {_spans.tolist()}")  # fmt: skip


def _checked(access: Any, pointers: int, mask: int | None = None) -> Any:
    """Check first; the numbers say which arguments are pointers and mask."""

    def run(self: Any, *args: Any) -> Any:
        _check(args[pointers], None if mask is None else args[mask].data)
        return access(self, *args)

    return run
