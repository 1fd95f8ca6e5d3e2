"""The time of a run and the signals it got, the same on every process, so that all of them decide alike."""

from __future__ import annotations

import signal
import time
from typing import NamedTuple

import torch
import torch.distributed as dist

from dqcore.distributed import World

__all__ = ["Clock", "Moment"]


class Moment(NamedTuple):
    """What all processes know after a step.

    Attributes:
        seconds: Time that the run has taken so far, on the main process's clock.
        signal: Number of the signal that some process got; 0 for none.
    """

    seconds: float
    signal: int


class Clock:
    """Seconds since this was made, and before that in the parts of the run that were resumed.

    Args:
        world: All processes.
    """

    def __init__(self, world: World) -> None:
        self.world, self.before, self._start = world, 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time so far, on this process's own clock."""
        return self.before + time.monotonic() - self._start

    def agree(self, received: int) -> Moment:
        """The moment that all processes go by. Every process calls this.

        Args:
            received: Number of the signal that this process got; 0 for none.
        """
        if self.world.size == 1:
            return Moment(self.seconds, received)
        mine = [self.seconds * self.world.is_main, received == signal.SIGINT, received == signal.SIGTERM]
        # On the CPU if a CPU backend runs: a sum on the GPU would make the host wait for the end of the step.
        device = "cpu" if "gloo" in dist.get_backend_config() else self.world.device
        seconds, interrupts, terminations = self.world.sum(
            torch.tensor(mine, dtype=torch.float64, device=device)
        ).tolist()
        number = signal.SIGINT if interrupts else signal.SIGTERM if terminations else 0
        return Moment(seconds, int(number))
