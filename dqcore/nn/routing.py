"""What a router is, and what it returns: which granularity each region of an image gets (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Router", "Routing"]


class Routing(NamedTuple):
    """What a router decided.

    Attributes:
        grain: Granularity of each region, int64, ``(B, h, w)``.
        gate: Learned routers only: one-hot of ``grain`` over axis 1, ``(B, G, h, w)``; in training its gradient is that
            of the soft probabilities.
        gate_logits: Learned routers only: the logits without noise, float32, ``(B, h, w, G)``.
        entropy: Entropy routers only: entropy of each region, nats, float32, ``(B, h, w)``.
        gains: Gain routers only: what each refinement is expected to gain, float32, ``(B, G - 1, h, w)``.
    """

    grain: Tensor
    gate: Tensor | None = None
    gate_logits: Tensor | None = None
    entropy: Tensor | None = None
    gains: Tensor | None = None


class Router(nn.Module):
    """The base of all routers.

    It is called as ``router(images, maps)`` with images ``(B, 3, H, W)`` and the encoder's maps coarse to fine. What it
    keeps beside its weights, as thresholds, is float32 at least: ``.half()`` and ``.to(bfloat16)`` do not round it.
    """

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Routing:
        """Choose a granularity for each region."""
        raise NotImplementedError

    def refinement_scores(self, routing: Routing) -> Tensor:
        """How much each region needs to go from granularity g to g + 1, ``(B, G - 1, h, w)``; never rising with g.

        For callers who set the number of codes (:mod:`dqcore.nn.allocation`).
        """
        raise NotImplementedError

    def loss(
        self, routing: Routing, images: Tensor, reconstruction: Tensor, reconstruct: Callable[[slice, Tensor], Tensor]
    ) -> Tensor | None:
        """The loss that trains this router, a scalar; None if the budget loss alone does, or nothing.

        Args:
            routing: What the router returned for the batch.
            images: The batch, ``(B, 3, H, W)``.
            reconstruction: Its reconstruction with the grain map of ``routing``.
            reconstruct: Reconstructs a slice of the batch with another grain map ``(b, h, w)``.
        """
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Router:
        """Move to another device or dtype, with its own buffers as they were where ``fn`` would round them."""
        before = dict(self._buffers)
        super()._apply(fn, *args, **kwargs)
        for name, value in before.items():
            moved = self._buffers[name]
            if value is not None and moved is not None and moved.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = value.to(moved.device, torch.float32)
        return self
