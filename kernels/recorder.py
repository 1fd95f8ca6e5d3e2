"""Recording a call of a launcher: see ``recording`` for what is written down, and ``replay`` for when."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dqcore.kernels.launch import Known
from dqcore.kernels.recording import Launch, Recording

ALIGNMENT = 512  # of buffers, in bytes, as PyTorch's allocator on a GPU has it
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
ZEROS = {"zeros", "zeros_like", "new_zeros"}


class Recorder(TorchDispatchMode):
    """Records what is done within it: as a dispatch mode it sees what PyTorch allocates, and launches report to it.

    A call is *refused*, and there will be no recording, if it does anything that a replay would leave out: an operation
    that computes, a launch that is not known, a tensor whose memory the recorder did not see.

    Args:
        given: The tensors among the call's arguments. Each must have memory of its own, on one device.
        device: That device, as Triton numbers it.

    Attributes:
        tensors: The arguments, then all that was allocated. They are kept alive, so that no two share an address.
        zeros: The numbers of those that begin as zeros.
        launches: Kernel, grid and the values of its parameters, tensors among them.
        refused: Whether the call was refused.
    """

    def __init__(self, given: list[Tensor], device: int) -> None:
        super().__init__()
        self.given, self.device = given, device
        self.tensors = [*given]
        self.zeros: set[int] = set()
        self.launches: list[tuple[Known, tuple[int, ...], tuple]] = []
        self._numbers = {_storage(tensor): number for number, tensor in enumerate(given)}
        self.refused = len(self._numbers) < len(given)  # two share memory: which of them a launch means is not known
        self.refused |= len({tensor.device for tensor in given}) > 1  # memory of the host that a GPU could reach, once

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled within; PyTorch would import its compiler, which takes seconds."""
        return False

    def refuse(self) -> None:
        """Give up: the call does something that no replay would do."""
        self.refused = True

    def note(self, known: Known | None, grid: tuple[int, ...], device: int, values: tuple) -> None:
        """Record a launch that was made; ``known`` is None if Triton alone can make it again."""
        if known is None or device != self.device:
            self.refused = True
        else:
            self.launches.append((known, grid, values))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation of PyTorch, and record it: it may allocate, or make a view; anything else is refused."""
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

    def recording(self, result: Any) -> Recording | bool:
        """What was recorded of a call that returned ``result``; False if it was refused, or returned other tensors."""
        returned = [] if result is None else list(result) if type(result) in (tuple, list) else [None]
        made = [self._whole(part) for part in returned]
        if self.refused or -1 in made or len(set(made)) < len(made):
            return False
        bases, sizes = self._bases(made)
        sources = _Sources(lambda tensor: self._place(tensor, bases))
        parts = [sources.of_all(values) for _, _, values in self.launches]
        if sources.unknown:
            return False
        taker = sources.takers(len(self.given) + len(made) + sum(size > 0 for size in sizes))
        launches = zip(self.launches, parts, strict=True)
        watched = [entry for known, _, _ in self.launches for entry in known.watched]
        return Recording(
            [Launch(known, (*grid, 1, 1)[:3], taker(part)) for (known, grid, _), part in launches],
            [(out.shape, out.stride(), out.dtype) for out in (self.tensors[number] for number in made)],
            None if result is None else type(result),
            sizes,
            list(sources.places),
            sources.constants,
            [taker(part) for part in sources.tuples],
            list({(id(names), name): (names, name, value) for names, name, value in watched}.values()),
            (self.given[0].device, self.device),
        )

    def _whole(self, tensor: Any) -> int:
        """The number of a result: a tensor that the call allocated, whole; -1 for a part, an argument, or zeros."""
        number = self._numbers.get(_storage(tensor), -1) if isinstance(tensor, Tensor) else -1
        if number < len(self.given) or number in self.zeros:
            return -1
        own = self.tensors[number]
        same = (own.shape, own.stride(), own.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
        return number if same and _begin(own) == _begin(tensor) else -1

    def _bases(self, made: list[int]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """Where all tensors lie in a replay, if those numbered ``made`` are the results.

        Returns:
            For each tensor the number of an address, and how many bytes after it the tensor begins: an argument and a
            result have an address of their own, what else was allocated shares that of a buffer. And the bytes of the
            two buffers.
        """
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
        """The number of a tensor's address in a replay, and the bytes from there to its begin; None if unknown."""
        number = self._numbers.get(_storage(tensor))
        if number is None:
            return None
        base, offset = bases[number]
        return base, offset + _begin(tensor) - _begin(self.tensors[number])


def _storage(tensor: Tensor) -> int:
    """A number that tensors share which are views of the same memory."""
    return int(tensor.untyped_storage()._cdata)


def _begin(tensor: Tensor) -> int:
    """How many bytes into its storage a tensor begins."""
    return int(tensor.storage_offset()) * tensor.element_size()


class _Sources:
    """Where the values of all parameters come from.

    A *source* is a kind and a number: the third address, the first place. The list of values of a replay has all
    addresses, then all places, constants and tuples; :meth:`takers` turns sources into indices of that list.

    Args:
        place: Called with a tensor; returns the number of its address and the bytes from there, or None.

    Attributes:
        unknown: Whether a parameter was a tensor of unknown memory.
        places: Number of an address and bytes from there, and the number that this place got.
        constants: The constants.
        tuples: The sources of each tuple's parts.
    """

    ADDRESS, PLACE, CONSTANT, TUPLE = range(4)

    def __init__(self, place: Callable[[Tensor], tuple[int, int] | None]) -> None:
        self.place, self.unknown = place, False
        self.places: dict[tuple[int, int], int] = {}
        self.constants: list[Any] = []
        self.tuples: list[list[tuple[int, int]]] = []

    def of_all(self, values: tuple) -> list[tuple[int, int]]:
        """The source of each value."""
        return [self._of(value) for value in values]

    def _of(self, value: Any) -> tuple[int, int]:
        if isinstance(value, Tensor) and value.numel() == 0:
            value = 0  # an address that no kernel reads
        if isinstance(value, Tensor):
            found = self.place(value)
            self.unknown |= found is None
            number, offset = found or (0, 0)
            if not offset:
                return self.ADDRESS, number
            return self.PLACE, self.places.setdefault((number, offset), len(self.places))
        if isinstance(value, tuple) and any(isinstance(part, Tensor) for part in tree_leaves(value)):
            self.tuples.append(self.of_all(value))
            return self.TUPLE, len(self.tuples) - 1
        self.constants.append(value)
        return self.CONSTANT, len(self.constants) - 1

    def takers(self, addresses: int) -> Callable[[list[tuple[int, int]]], Callable[[list[Any]], tuple]]:
        """What makes, of a list of sources, that which takes their values from the list of all values.

        Args:
            addresses: How many addresses a replay has.
        """
        ends = (0, addresses, addresses + len(self.places), addresses + len(self.places) + len(self.constants))

        def taker(sources: list[tuple[int, int]]) -> Callable[[list[Any]], tuple]:
            numbers = [ends[kind] + number for kind, number in sources]
            if len(numbers) == 1:
                return lambda values: (values[numbers[0]],)  # an itemgetter of one index makes no tuple
            return operator.itemgetter(*numbers)

        return taker
