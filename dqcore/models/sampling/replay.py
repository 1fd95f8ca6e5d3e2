"""Doing the same work on the same memory many times: a CUDA graph on a GPU, plain calls elsewhere."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from dqcore import backends

__all__ = ["GraphedWork", "Watched", "can_capture"]


def can_capture(weights: Tensor) -> bool:
    """Whether a CUDA graph can hold our ops on tensors like ``weights``.

    The ops' kernels can be captured. Their references cannot, because they read values on the host.
    """
    kernels = backends.route(weights.device) == "gpu" and backends.available("triton", weights.device)
    return weights.device.type == "cuda" and kernels and weights.dtype != torch.float64


#: Held by the thread that captures: the others' captures would synchronize with a stream that is being recorded.
_capturing = threading.Lock()


class GraphedWork:
    """Calls ``run``; if ``captured``, the first calls are ordinary, then a CUDA graph of one call is replayed.

    A replay skips all that Python does in ``run``, which on a GPU takes longer than the kernels.

    Args:
        run: Takes nothing and returns nothing. It reads and writes tensors that stay at their addresses, and never
            waits for a value of the device.
        captured: Whether to capture it; see :func:`can_capture`.
    """

    #: Ordinary calls before the capture, in which kernels are compiled and memory is allocated.
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
        graph, stream = torch.cuda.CUDAGraph(), _stream(torch.cuda.current_device())
        with _capturing:
            torch.cuda.synchronize()
            # What other threads do meanwhile, such as one that pins memory for a loader, neither fails nor ends this.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.run()  # only recorded
        self._graph = graph
        graph.replay()


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    """What graphs of a GPU are captured on: PyTorch's own stream for that is one of the first GPU that captured any."""
    return torch.cuda.Stream(device)


class Watched:
    """A counter on a device that the host reads without waiting for the work that was launched last.

    Args:
        value: Scalar int64. On a GPU, :meth:`read` returns the value that it had at the previous call.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._event: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            self._copy = torch.zeros((), dtype=torch.int64, device="cpu", pin_memory=True)

    def read(self) -> int:
        """The counter, as far as the host knows it; 0 at first on a GPU."""
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
