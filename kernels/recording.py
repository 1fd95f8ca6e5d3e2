"""A recording: what one call of a launcher allocated and launched, so that the same can be done for other tensors.

A launcher is a Python function that takes tensors, allocates its results and some buffers, and launches kernels. If
two calls have tensors of the same shapes, strides, dtypes and alignment, they differ in nothing but addresses. So one
of them runs under a recorder (``recorder``), which writes down

- the results: shape, strides and dtype of each;
- the buffers: their bytes, all in one, and those that begin as zeros in a second one;
- the launches: kernel, grid, and for each parameter of the kernel where its value comes from.

:meth:`Recording.replay` allocates results and buffers, makes one list of all values, and launches each kernel with what
it takes from there. For 2 arguments, 1 result and a buffer that two tensors share, the list is, in this order::

    addresses   argument 0, argument 1, result 2, buffer 3
    places      buffer 3 + 512 bytes           (a view, or the second tensor in a buffer: an address and an offset)
    constants   numbers, None, tl.constexpr    (of all launches)
    tuples      (address 0, place 0, ..)       (a kernel's parameter may be a tuple with tensors in it)

Which calls are recorded, and which recording stands for a call, ``replay`` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dqcore.kernels.launch import Known


class Launch(NamedTuple):
    """A launch of a recording.

    Attributes:
        known: The compiled kernel.
        grid: Three numbers.
        take: Called with the list of all values; returns those of the kernel's parameters, in their order.
    """

    known: Known
    grid: tuple[int, ...]
    take: Callable[[list[Any]], tuple]


class Recording(NamedTuple):
    """A call of a launcher, for any tensors like those that it was recorded with.

    It is valid on its device while :meth:`holds`, for arguments of which nothing but addresses is new.

    Attributes:
        launches: In their order.
        outputs: Shape, strides and dtype of each tensor that the call returns.
        kind: The type of what it returns, list or tuple; None if it returns nothing.
        buffers: Bytes of the buffer whose contents at the start do not matter, and of the one that begins as zeros; 0
            for none.
        places: For each place the number of its address in the list of values, and how many bytes it lies after that.
        constants: The constants of all launches.
        tuples: For each tuple, what takes its parts from the values that stand before it in the list.
        watched: Globals that the kernels were compiled with; see :class:`Known`.
        device: The device of all tensors, as PyTorch names it, and as Triton numbers it.
    """

    launches: list[Launch]
    outputs: list[tuple]
    kind: Any
    buffers: tuple[int, int]
    places: list[tuple[int, int]]
    constants: list[Any]
    tuples: list[Callable[[list[Any]], tuple]]
    watched: list[tuple[dict[str, Any], str, Any]]
    device: tuple[torch.device, int]

    def holds(self) -> bool:
        """Whether its kernels are still those that Triton would launch: no global that they read has changed."""
        return all(names.get(name) is value for names, name, value in self.watched)

    def replay(self, given: list[Tensor]) -> Any:
        """Make the call with other tensors.

        Args:
            given: The tensors among its arguments, in the order in which they were recorded.

        Returns:
            What the launcher returns. False, with nothing launched, if the allocator gives memory whose address 16 does
            not divide, for which Triton would have compiled other kernels.
        """
        (device, current), (work, zeros) = self.device, self.buffers
        made = [torch.empty_strided(size, strides, dtype=kind, device=device) for size, strides, kind in self.outputs]
        result = None if self.kind is None else self.kind(made)
        if work:
            made.append(torch.empty(work, dtype=torch.uint8, device=device))
        if zeros:
            made.append(torch.zeros(zeros, dtype=torch.uint8, device=device))
        addresses = [tensor.data_ptr() for tensor in made]
        if any([address & 15 for address in addresses]):
            return False
        values: list[Any] = [tensor.data_ptr() for tensor in given] + addresses
        values += [values[number] + offset for number, offset in self.places]
        values += self.constants
        for take in self.tuples:
            values.append(take(values))
        stream = triton.runtime.driver.active.get_current_stream(current)
        for known, grid, take in self.launches:
            known.run(*grid, stream, known.function, known.metadata, None, None, None, *take(values))
        return result
