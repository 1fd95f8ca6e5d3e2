"""What the sampler needs of a prior that draws along a tape, and how such a prior draws one token at a time."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from dqcore.models.sampling.replay import can_capture
from dqcore.models.tape import Tape
from dqcore.nn.attention import CacheKind
from dqcore.nn.transformer import Cache, Transformer

__all__ = ["CachedSteps", "Steps", "TapeModel"]


class TapeModel(Protocol):
    """A prior over the tokens of a tape, as the sampler sees it.

    ``N`` tokens are packed sequences where ``where`` is their ``cu_seqlens``, ``(B + 1,)`` int32. Where it is a
    :class:`Cache`, they are the next token of each of its slots, and all tokens before them are in the cache.
    """

    @property
    def config(self) -> Any:
        """A :class:`dqcore.models.priors.config.PriorConfig`."""
        ...

    @property
    def tape(self) -> Tape:
        """The order of the tokens."""
        ...

    @property
    def step_embedding(self) -> Tensor:
        """``(max_steps, dim)``."""
        ...

    @property
    def position_transformer(self) -> Transformer | None:
        """None for a prior that knows all positions."""
        ...

    @property
    def content_transformer(self) -> Transformer:
        """The transformer over contents."""
        ...

    def embed(self, contents: Tensor, rows: Tensor, grains: Tensor, steps: Tensor) -> Tensor:
        """Embeddings ``(N, dim)`` of tokens, given as ``(N,)`` each."""
        ...

    def predict_positions(self, x: Tensor, where: Tensor | Cache | None) -> tuple[Tensor, Tensor | None]:
        """States ``(N, dim)`` of embedded tokens, and logits ``(N, columns)`` of the positions after them."""
        ...

    def predict_contents(self, states: Tensor, next_rows: Tensor, where: Tensor | Cache) -> Tensor:
        """Logits ``(N, contents)`` of the next contents, given the rows ``(N,)`` of the next positions."""
        ...


class Steps(Protocol):
    """A model in the midst of sampling ``R`` rows, each the sequence of one sample: one token of each row at a time.

    Attributes:
        active: Rows that take part, ``(R,)`` bool; the sampler writes to it.
        capturable: Whether a CUDA graph can hold a step.
    """

    active: Tensor
    capturable: bool

    def positions(self, contents: Tensor, rows: Tensor, grains: Tensor) -> Tensor | None:
        """Read one token of each row, ``(R,)``; return logits ``(R, columns)`` of the position after it.

        None where positions need not be predicted.
        """
        ...

    def codes(self, rows: Tensor) -> Tensor:
        """Logits ``(R, K)`` of the codes of the next tokens, whose positions have embedding rows ``(R,)``."""
        ...

    def restart(self, fresh: Tensor) -> None:
        """Forget all tokens of the rows where ``fresh``, ``(R,)`` bool: their next token is a sample's first."""
        ...


class CachedSteps:
    """:class:`Steps` that keep the keys and values of all tokens so far.

    Args:
        prior: The model.
        num_rows: ``R``.
        capacity: Tokens of the longest sample.
        kind: How keys and values are kept, as ``Sampling.cache`` says.
    """

    def __init__(self, prior: TapeModel, num_rows: int, capacity: int, kind: CacheKind = "auto") -> None:
        self.prior = prior
        device = prior.step_embedding.device
        self.lengths = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self.active = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self._position_cache = None
        if prior.position_transformer is not None:
            self._position_cache = prior.position_transformer.new_cache(capacity, self.lengths, self.active, kind)
        self._content_cache = prior.content_transformer.new_cache(capacity, self.lengths, self.active, kind)
        self.capturable = can_capture(prior.step_embedding)
        self._states = torch.empty(0)

    def positions(self, contents: Tensor, rows: Tensor, grains: Tensor) -> Tensor | None:
        """Read one token of each row."""
        steps = self.lengths.clamp_max(self.prior.config.max_steps - 1)
        x = self.prior.embed(contents, rows, grains, steps)
        self._states, logits = self.prior.predict_positions(x, self._position_cache)
        return logits

    def codes(self, rows: Tensor) -> Tensor:
        """Logits of the codes of the next tokens."""
        logits = self.prior.predict_contents(self._states, rows, self._content_cache)
        self.lengths += self.active
        return logits[:, : self.prior.config.codebook_size]

    def restart(self, fresh: Tensor) -> None:
        """Begin new samples in these rows."""
        self.lengths.masked_fill_(fresh, 0)
