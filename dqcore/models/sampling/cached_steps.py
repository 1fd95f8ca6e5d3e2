"""A prior that walks a tape, in the midst of sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqcore.models.sampling.replay import can_capture

__all__ = ["CachedSteps"]


class CachedSteps:
    """A prior in the midst of sampling; see :class:`dqcore.models.sampling.sampler.Steps`."""

    def __init__(self, prior: Any, num_rows: int, capacity: int) -> None:
        self.prior = prior
        device = prior.step_embedding.device
        self.lengths = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self.active = torch.zeros(num_rows, dtype=torch.bool, device=device)
        caches = [
            None if transformer is None else transformer.new_cache(capacity, self.lengths, self.active)
            for transformer in (prior.position_transformer, prior.content_transformer)
        ]
        self._position_cache, self._content_cache = caches
        self.capturable = can_capture(prior.step_embedding)
        self._state = torch.empty(0)

    def positions(self, contents: Tensor, rows: Tensor, grains: Tensor) -> Tensor | None:
        """Read a token of each row."""
        prior = self.prior
        x = prior._embed(contents, rows, grains, self.lengths.clamp_max(prior.config.max_steps - 1))
        self._state, logits = prior._read(x, self._position_cache)
        return logits

    def codes(self, rows: Tensor) -> Tensor:
        """Logits of the codes at the next positions."""
        logits = self.prior._write(self._state, rows, self._content_cache)
        self.lengths += self.active
        return logits[:, : self.prior.config.codebook_size]

    def restart(self, fresh: Tensor) -> None:
        """Begin new samples in these rows."""
        self.lengths.masked_fill_(fresh, 0)
