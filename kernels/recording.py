"""A call of a launcher, noted: what it allocated and launched, and how to do the same for other tensors.

``replay`` says when that is done.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dqcore.kernels.launch import Known

ALIGNMENT = 512  # of buffers, in bytes, as PyTorch's allocator on a GPU has it
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
ZEROS = {"zeros", "zeros_like", "new_zeros"}


class Step(NamedTuple):
    """A launch: the kernel, its grid, and what takes the values of its parameters from the list of all values."""

    known: Known
    grid: tuple[int, ...]
    values: Callable[[list[Any]], tuple]


class Replay(NamedTuple):
    """The launches of a call.

    The values of their parameters come from one list: the addresses of what was given, of what is returned and of the
    buffers, then of places within these, then constants, then tuples of values before them.

    Attributes:
        steps: The launches.
        outputs: Shape, strides and dtype of each tensor that the call returns.
        kind: The type of the result; None for no result.
        buffers: Bytes of the buffer that begins with anything, and of the one that begins as zeros; 0 for none.
        places: Which address, and how many bytes from there.
        constants: Of all launches.
        tuples: What takes each from the values before it.
        watched: Globals of the kernels; see :class:`Known`.
        device: Of the tensors, as PyTorch and as Triton counts.
    """

    steps: list[Step]
    outputs: list[tuple]
    kind: Any
    buffers: tuple[int, int]
    places: list[tuple[int, int]]
    constants: list[Any]
    tuples: list[Callable[[list[Any]], tuple]]
    watched: list[tuple[dict[str, Any], str, Any]]
    device: tuple[torch.device, int]

    def holds(self) -> bool:
        """Whether Triton would compile no kernel anew."""
        return all(names.get(name) is value for names, name, value in self.watched)

    def again(self, given: list[Tensor]) -> Any:
        """Make the call with other tensors; False if the allocator gives one that 16 bytes do not divide."""
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
        for taken in self.tuples:
            values.append(taken(values))
        stream = triton.runtime.driver.active.get_current_stream(current)
        for known, grid, taken in self.steps:
            known.run(*grid, stream, known.function, known.metadata, None, None, None, *taken(values))
        return result


class Recorder(TorchDispatchMode):
    """Notes what a call allocates and launches."""

    def __init__(self, given: list[Tensor], device: int) -> None:
        super().__init__()
        self.given, self.device = given, device
        self.tensors = [*given]  # and what was allocated: alive, so that no two begin at one address
        self.zeros: set[int] = set()  # which of them begin as zeros
        self.launches: list[tuple[Known, tuple[int, ...], tuple]] = []
        self._numbers = {_storage(tensor): number for number, tensor in enumerate(given)}
        self.refused = len(self._numbers) < len(given)  # nobody could tell which of two a launch is about
        self.refused |= len({tensor.device for tensor in given}) > 1  # the host's memory that a GPU reached for once

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled within; PyTorch would import its compiler, which takes seconds."""
        return False

    def refuse(self) -> None:
        """This call cannot be noted."""
        self.refused = True

    def note(self, known: Known | None, grid: tuple[int, ...], device: int, values: tuple) -> None:
        """A launch was made."""
        if known is None or device != self.device:
            self.refused = True
        else:
            self.launches.append((known, grid, values))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation of PyTorch, and note what it allocates; it may do no more than that, or look at a part."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        aliases = [result.alias_info for result in func._schema.returns]
        if name in EMPTY or name in ZEROS:
            if name in ZEROS and out.numel():
                self.zeros.add(len(self.tensors))
            self.refused |= out.data_ptr() % 16 != 0
            self._numbers[_storage(out)] = len(self.tensors)
            self.tensors.append(out)
        elif not aliases or any(alias is None or alias.is_write for alias in aliases):
            self.refused = True
        return out

    def replay(self, result: Any) -> Replay | bool:
        """The launches, False if they cannot be made again."""
        returned = [] if result is None else list(result) if type(result) in (tuple, list) else [None]
        made = [self._whole(part) for part in returned]
        if self.refused or -1 in made or len(set(made)) < len(made):
            return False
        bases, sizes = self._bases(made)
        values = _Values(lambda tensor: self._place(tensor, bases))
        parts = [values.parts(given) for _, _, given in self.launches]
        if values.unknown:
            return False
        take = values.takers(len(self.given) + len(made) + sum(size > 0 for size in sizes))
        launches = zip(self.launches, parts, strict=True)
        watched = [entry for known, _, _ in self.launches for entry in known.watched]
        return Replay(
            [Step(known, (*grid, 1, 1)[:3], take(part)) for (known, grid, _), part in launches],
            [(out.shape, out.stride(), out.dtype) for out in (self.tensors[number] for number in made)],
            None if result is None else type(result),
            sizes,
            list(values.places),
            values.constants,
            [take(part) for part in values.tuples],
            list({(id(names), name): (names, name, value) for names, name, value in watched}.values()),
            (self.given[0].device, self.device),
        )

    def _whole(self, tensor: Any) -> int:
        """The number of an allocated tensor, all of it; -1 if it is none, or begins as zeros."""
        number = self._numbers.get(_storage(tensor), -1) if isinstance(tensor, Tensor) else -1
        if number < len(self.given) or number in self.zeros:
            return -1
        own = self.tensors[number]
        same = (own.shape, own.stride(), own.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
        return number if same and _begin(own) == _begin(tensor) else -1

    def _bases(self, made: list[int]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """For each tensor which of the addresses of a replay it begins at, and how far from there; sizes of buffers."""
        first, sizes, offsets = len(self.given), [0, 0], []
        for number, tensor in enumerate(self.tensors[first:], first):
            zeros = number in self.zeros
            offsets.append(sizes[zeros])
            if number not in made:
                sizes[zeros] += -(-tensor.untyped_storage().nbytes() // ALIGNMENT) * ALIGNMENT
        work = first + len(made)
        bases = [(number, 0) for number in range(first)]
        for number, offset in enumerate(offsets, first):
            buffer = work + (number in self.zeros and sizes[0] > 0)
            bases.append((first + made.index(number), 0) if number in made else (buffer, offset))
        return bases, (sizes[0], sizes[1])

    def _place(self, tensor: Tensor, bases: list[tuple[int, int]]) -> tuple[int, int] | None:
        """Which address of a replay a tensor begins at, and how far from there; None if nobody knows."""
        number = self._numbers.get(_storage(tensor))
        if number is None:
            return None
        base, offset = bases[number]
        return base, offset + _begin(tensor) - _begin(self.tensors[number])


def _storage(tensor: Tensor) -> int:
    """What tensors share that look at the same memory."""
    return int(tensor.untyped_storage()._cdata)


def _begin(tensor: Tensor) -> int:
    """How many bytes into its storage a tensor begins."""
    return int(tensor.storage_offset()) * tensor.element_size()


class _Values:
    """Where the values of all parameters come from: each is one of four kinds, and has a number in its kind."""

    ADDRESS, PLACE, CONSTANT, TUPLE = range(4)

    def __init__(self, place: Callable[[Tensor], tuple[int, int] | None]) -> None:
        self.place, self.unknown = place, False
        self.places: dict[tuple[int, int], int] = {}
        self.constants: list[Any] = []
        self.tuples: list[list[tuple[int, int]]] = []

    def parts(self, values: tuple) -> list[tuple[int, int]]:
        """Kind and number of each value."""
        return [self._of(value) for value in values]

    def _of(self, value: Any) -> tuple[int, int]:
        if isinstance(value, Tensor) and value.numel() == 0:
            value = 0  # an address that nobody reads
        if isinstance(value, Tensor):
            found = self.place(value)
            self.unknown |= found is None
            number, offset = found or (0, 0)
            return (self.PLACE, self.places.setdefault((number, offset), len(self.places))) if offset else (0, number)
        if isinstance(value, tuple) and any(isinstance(part, Tensor) for part in tree_leaves(value)):
            self.tuples.append(self.parts(value))
            return self.TUPLE, len(self.tuples) - 1
        self.constants.append(value)
        return self.CONSTANT, len(self.constants) - 1

    def takers(self, addresses: int) -> Callable[[list[tuple[int, int]]], Callable[[list[Any]], tuple]]:
        """What makes of kinds and numbers that which takes these from a list of all values, in the order of kinds."""
        ends = (0, addresses, addresses + len(self.places), addresses + len(self.places) + len(self.constants))

        def taker(parts: list[tuple[int, int]]) -> Callable[[list[Any]], tuple]:
            numbers = [ends[kind] + number for kind, number in parts]
            if len(numbers) == 1:
                return lambda values: (values[numbers[0]],)
            return operator.itemgetter(*numbers)

        return taker
