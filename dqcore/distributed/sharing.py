"""Work that all processes share: each item is done once, by the process that is free, and results come in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch.distributed as dist

from dqcore.distributed import World

__all__ = ["Signals", "Turns", "share_work"]

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items of each process between two exchanges of results, at which all wait for the slowest one.
PER_ROUND = 16
#: Above every number of an item.
END = 1 << 40

_names = itertools.count()


class Signals(Protocol):
    """Knows the number of the signal that asks to stop; 0 for none."""

    received: int


class Turns:
    """The numbers 0, 1, 2, ... of items, each given to one process: the one that asks next.

    Every process makes its turns in the same order.

    Args:
        world: All processes.
    """

    def __init__(self, world: World) -> None:
        self._alone = itertools.count()
        # The group's own store: it is there whoever started the group, and one request costs a tenth of a millisecond.
        self._store = dist.distributed_c10d._get_default_store() if world.size > 1 else None
        self._key = f"dqcore/turns/{next(_names)}"

    def take(self) -> int:
        """The next number; after :meth:`close` one of at least ``END``, in every process."""
        return next(self._alone) if self._store is None else self._store.add(self._key, 1) - 1

    def close(self) -> None:
        """Give out no more numbers."""
        self._alone = itertools.count(END)
        if self._store is not None:
            self._store.add(self._key, END)


def share_work(
    world: World, items: Sequence[Item], work: Callable[[Item], Result], signals: Signals | None = None
) -> Iterator[Result]:
    """Do ``work`` for each item, once, in whichever process is free. Every process calls this with the same items.

    Args:
        world: All processes.
        items: What to work on.
        work: Its result must be picklable, with tensors on the CPU.
        signals: Where a process was told to stop, none begins another item; in the end all know of the signal.

    Yields:
        In the first process the results, in the order of the items; in the others nothing, but they must iterate too.
    """
    turns, end = Turns(world), 0
    mine = turns.take()
    while any(world.gather(mine < len(items))):
        end = min(end + (1 if world.size == 1 else PER_ROUND * world.size), len(items))
        done: dict[int, Result] = {}
        while mine < end:
            if signals is not None and signals.received:
                turns.close()
                mine = END
            else:
                done[mine] = work(items[mine])
                mine = turns.take()
        everyone = {number: result for part in world.gather_first(done) for number, result in part.items()}
        yield from (everyone[number] for number in sorted(everyone))
    if signals is not None:
        signals.received = max(world.gather(signals.received))
