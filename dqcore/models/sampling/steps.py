"""What the sampler needs of a prior that draws along a tape, and how such a prior draws one token at a time."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dqcore.models.sampling.replay import can_capture
from dqcore.models.tape import Tape
from dqcore.nn.attention import CacheKind
from dqcore.nn.transformer import Cache, Transformer
from dqcore.ops.add_rows import add_rows

__all__ = ["CachedSteps", "Steps", "Tables", "TapeModel"]


class Tables(NamedTuple):
    """Tables ``(.., dim)`` of which a token's embedding has a row each, added in this order; None for no such part.

    Attributes:
        contents: By the token's content.
        positions: By the row of its position.
        steps: By its index in the image.
        grains: By its granularity.
    """

    contents: Tensor
    positions: Tensor | None
    steps: Tensor
    grains: Tensor | None


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

    def tables(self) -> Tables:
        """What :meth:`embed` adds up."""
        ...

    def predict_positions(self, x: Tensor, where: Tensor | Cache | None) -> tuple[Tensor, Tensor | None]:
        """States ``(N, dim)`` of embedded tokens, and logits ``(N, columns)`` of the positions after them."""
        ...

    def predict_contents(self, states: Tensor, next_rows: Tensor | None, where: Tensor | Cache) -> Tensor:
        """Logits ``(N, contents)`` of the next contents, given the rows ``(N,)`` of the next positions.

        None for rows whose vectors were added to the states already.
        """
        ...


class Steps(Protocol):
    """A model in the midst of sampling ``R`` rows, each the sequence of one sample: one token of each row at a time.

    Attributes:
        active: Rows that take part, ``(R,)`` bool; the sampler writes to it.
        lengths: Tokens that each row has read, ``(R,)`` int32; after each step the sampler adds those of active rows.
        capturable: Whether a CUDA graph can hold a step.
    """

    active: Tensor
    lengths: Tensor
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
        self._tables = prior.tables()
        self._states = torch.empty(0)

    def positions(self, contents: Tensor, rows: Tensor, grains: Tensor) -> Tensor | None:
        """Read one token of each row."""
        parts = (contents, rows, self.lengths, grains)
        indices = [index for table, index in zip(self._tables, parts, strict=True) if table is not None]
        x = add_rows(None, [table for table in self._tables if table is not None], indices)
        self._states, logits = self.prior.predict_positions(x, self._position_cache)
        return logits

    def codes(self, rows: Tensor) -> Tensor:
        """Logits of the codes of the next tokens."""
        states = self._states
        if self._position_cache is not None:
            assert self._tables.positions is not None
            states = add_rows(states, [self._tables.positions], [rows])
        return self.prior.predict_contents(states, None, self._content_cache)[:, : self.prior.config.codebook_size]

    def restart(self, fresh: Tensor) -> None:
        """Begin new samples in these rows."""
        self.lengths.masked_fill_(fresh, 0)
