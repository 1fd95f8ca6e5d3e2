"""The same work on the same memory, over and over: a CUDA graph on a GPU, plain calls elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dqcore import backends

__all__ = ["Replay", "Watched", "can_capture"]


def can_capture(weights: Tensor) -> bool:
    """Whether a CUDA graph can hold our ops on such tensors: their references look at values, their kernels do not."""
    kernels = backends.route(weights.device) == "gpu" and backends.available("triton", weights.device)
    return weights.device.type == "cuda" and kernels and weights.dtype != torch.float64


class Replay:
    """Calls ``run``; on a GPU it is captured after a few calls and from then on replayed, without its host's work.

    Args:
        run: Takes nothing, returns nothing; reads and writes tensors that stay where they are, and waits for no value.
        captured: Whether to capture it: on a GPU whose kernels allow it.
    """

    #: Calls before capture: what they compile and allocate must not happen in a graph.
    WARM_UP = 3

    def __init__(self, run: Callable[[], None], captured: bool) -> None:
        self.run = run
        self._left = self.WARM_UP if captured else -1
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do it once."""
        if self._graph is not None:
            self._graph.replay()
            return
        if self._left:
            self._left -= 1
            self.run()
            return
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph):
            self.run()  # recorded, not done
        self._graph.replay()


class Watched:
    """A number that grows on a device, read on the host without waiting for the work at hand.

    Args:
        value: Scalar int64. On a GPU :meth:`read` returns what it was at the read before.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._event: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            self._copy = torch.zeros((), dtype=torch.int64, pin_memory=True)

    def read(self) -> int:
        """The number, as far as it is known."""
        if self.value.device.type != "cuda":
            return int(self.value)
        known = 0
        if self._event is not None:
            self._event.synchronize()
            known = int(self._copy)
        self._copy.copy_(self.value, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()
        return known
