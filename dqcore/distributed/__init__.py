"""Several processes as one: ``torchrun`` launches them, and each computes its part of every global batch.

Gradients are averaged by hand after the backward pass, because one forward pass of the tokenizer is followed by several
backward passes and ``DistributedDataParallel`` expects one backward pass for each forward.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dqcore.backends import choose_device
from dqcore.errors import InputError

__all__ = [
    "ALONE",
    "TIMEOUT",
    "World",
    "from_all_processes",
    "from_first_process",
    "join_world",
    "num_processes",
    "process_rank",
    "rows_of_all_processes",
    "sum_over_processes",
    "sum_with_gradient",
]

#: Seconds that a process waits for another one, unless the user says otherwise.
TIMEOUT = 1800.0
#: Elements in one gradient message (100 MB of float32).
BUCKET = 25_000_000


def num_processes() -> int:
    """How many processes compute together: 1 where ``torch.distributed`` does not run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Which of them this process is: 0 where ``torch.distributed`` does not run."""
    return dist.get_rank() if num_processes() > 1 else 0


def from_all_processes(values: Tensor) -> Tensor:
    """Every process's ``values``, which have one shape, stacked by rank."""
    if num_processes() == 1:
        return values[None]
    every = values.new_empty(num_processes() * values.numel())
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before PyTorch 2.14
    gather(every, values.flatten())
    return every.view(-1, *values.shape)


def rows_of_all_processes(rows: Tensor) -> Tensor:
    """Every process's ``rows (n, ..)``, one process after the other; n may differ.

    The numbers of rows are told from host to host, which waits for no GPU where a CPU backend runs beside NCCL. What is
    compiled cannot ask for them: there n is the same everywhere.
    """
    if num_processes() == 1:
        return rows
    if torch.compiler.is_compiling():
        return from_all_processes(rows).flatten(0, 1)
    numbers: list[Any] = [None] * num_processes()
    dist.all_gather_object(numbers, len(rows))
    filled = torch.cat([rows, rows.new_zeros(max(numbers) - len(rows), *rows.shape[1:])])
    every = zip(from_all_processes(filled), numbers, strict=True)
    return torch.cat([part[:number] for part, number in every])


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of every process's ``values``; the argument is left as it is."""
    if num_processes() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_over_processes(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient.contiguous())


def sum_with_gradient(values: Tensor) -> Tensor:
    """:func:`sum_over_processes` whose gradient is that of the sum of all processes' losses; all go back through it."""
    total: Tensor = values if num_processes() == 1 else _Sum.apply(values)
    return total


def from_first_process(values: Tensor) -> Tensor:
    """The first process's ``values`` on every process, contiguous; the argument may be overwritten."""
    if num_processes() == 1:
        return values
    values = values.contiguous()
    dist.broadcast(values, src=0)
    return values


@dataclass(frozen=True)
class World:
    """The processes of this run.

    Attributes:
        rank: This process.
        size: How many there are.
        device: Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Mean over processes."""
        return self.sum(values).div_(self.size) if self.size > 1 else values

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes; the argument is left as it is."""
        return sum_over_processes(values)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_first(self, value: Any) -> list[Any]:
        """The value of every process, by rank, in the first process; an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def of_first(self, value: Any) -> Any:
        """The first process's value, on every process."""
        if self.size == 1:
            return value
        values = [value if self.is_main else None]
        dist.broadcast_object_list(values)
        return values[0]

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()

    def broadcast(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data.copy_(from_first_process(tensor.data))

    def fork_rng(self) -> AbstractContextManager[None]:
        """While this is open, random draws leave the caller's random state as it was."""
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        return torch.random.fork_rng(devices=gpus)  # all of them: torch.manual_seed seeds each

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over processes; a missing one counts as 0."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        size = 0
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            size += parameter.numel()
            if size >= BUCKET:
                self._average(bucket)
                bucket, size = [], 0
        if bucket:
            self._average(bucket)

    def _average(self, gradients: list[Tensor]) -> None:
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = zip(gradients, flat.split([g.numel() for g in gradients]), strict=True)
        torch._foreach_copy_(gradients, [part.view_as(gradient) for gradient, part in parts])


#: A run of one process on the CPU.
ALONE = World(0, 1, torch.device("cpu"))


def join_world(device: str, timeout: float = TIMEOUT) -> World:
    """This process among those that ``torchrun`` launched, or alone.

    Under ``torchrun`` this starts ``torch.distributed``, which then runs until the process ends.

    Args:
        device: See :func:`dqcore.backends.choose_device`; ``"cuda"`` is the GPU of this process's local rank.
        timeout: Seconds to wait for another process that does not answer, before this one fails.

    Raises:
        InputError: there is no such device, or the timeout is no positive number.
    """
    if not 0 < timeout < float("inf"):
        raise InputError(f"timeout: expected seconds, more than 0, got {timeout}")
    place = choose_device(device, index=int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # gloo beside nccl, so that plain values need not pass through a GPU
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        atexit.register(_leave)  # else a later group on the same port may find this one's store
    if not dist.is_initialized():
        return World(0, 1, place)
    return World(dist.get_rank(), dist.get_world_size(), place)


def _leave() -> None:
    """End ``torch.distributed`` unless somebody has."""
    if dist.is_initialized():
        dist.destroy_process_group()
