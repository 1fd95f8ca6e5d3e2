"""Priors that read and draw the tokens of an image one after the other along a tape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dqcore.codes import CodeSequence
from dqcore.errors import InputError
from dqcore.models.priors.base import Prior
from dqcore.models.priors.config import PriorOutput, Targets
from dqcore.models.priors.request import Request
from dqcore.models.sampling.sampler import Sampler
from dqcore.models.sampling.steps import CachedSteps, Tables
from dqcore.models.sampling.walk import Plan
from dqcore.models.tape import NULL, Tape
from dqcore.nn.attention import CacheKind
from dqcore.nn.constants import device_of_tables
from dqcore.nn.transformer import Cache, Head, Transformer
from dqcore.ops.cross_entropy import cross_entropy

__all__ = ["TapePrior"]


class TapePrior(Prior):
    """A transformer over positions, and one over contents that is told where the next content will stand.

    ::

        contents, positions, steps      x = embed(...)
                    |
          position_transformer          h = P(x)
                    |------------------ p(position[t + 1] | h[t])
          + vector of position t + 1
                    |
          content_transformer           c = C(h + e)
                    |------------------ p(content[t + 1] | c[t])

    A subclass adds its embeddings after ``super().__init__``, calls :func:`dqcore.nn.transformer.initialise`, and says
    in :meth:`embed` and :meth:`position_vectors` how they make vectors of tokens, and in :meth:`tables` the same in
    another way. Steps, in ``step_embedding``, are indices of tokens in their image.

    Args:
        config: The model's config.
        tape: The order of the tokens.
        position_layers: Blocks of the first transformer; 0 for a prior that knows all positions, which then has
            neither ``position_transformer`` nor ``position_head``.
        content_layers: Blocks of the second transformer.
        num_contents: Classes of the content head.
        num_columns: Classes of the position head.
    """

    tape: Tape
    step_embedding: nn.Parameter
    position_transformer: Transformer | None
    position_head: Head | None
    content_transformer: Transformer

    def __init__(
        self,
        config: Any,
        tape: Tape,
        position_layers: int,
        content_layers: int,
        num_contents: int,
        num_columns: int,
    ) -> None:
        super().__init__(config)
        if config.max_steps < tape.max_tokens - 1:
            raise InputError(
                f"max_steps: expected at least {tape.max_tokens - 1} for this grid, got {config.max_steps}"
            )
        self.content_embedding = nn.Embedding(config.codebook_size + 2 + config.num_labels, config.dim)
        self.step_embedding = nn.Parameter(torch.zeros(config.max_steps, config.dim))
        self.tape = tape.to(device_of_tables(self.step_embedding.device))
        self.dropout = nn.Dropout(config.dropout)
        self.position_transformer = self.position_head = None
        if position_layers:
            self.position_transformer = Transformer(config.dim, config.num_heads, position_layers, config.dropout)
            self.position_head = Head(config.dim, num_columns)
        self.content_transformer = Transformer(config.dim, config.num_heads, content_layers, config.dropout)
        self.content_head = Head(config.dim, num_contents)

    def embed(self, contents: Tensor, rows: Tensor, grains: Tensor, steps: Tensor) -> Tensor:
        """Embeddings ``(N, dim)`` of tokens.

        Args:
            contents: Codes and special contents, ``(N,)`` int64.
            rows: Rows of the position embedding, ``(N,)`` int64.
            grains: Granularities, ``(N,)`` int64.
            steps: Rows of the step embedding, ``(N,)`` integers.
        """
        raise NotImplementedError

    def position_vectors(self, rows: Tensor) -> Tensor:
        """Vectors ``(N, dim)`` of positions, by their rows ``(N,)``; not needed without a position transformer."""
        raise NotImplementedError

    def tables(self) -> Tables:
        """The tables whose rows :meth:`embed` adds up, and of whose ``positions`` a row is a vector of position."""
        raise NotImplementedError

    def predict_positions(self, x: Tensor, where: Tensor | Cache | None) -> tuple[Tensor, Tensor | None]:
        """Run the position transformer.

        Args:
            x: Embedded tokens, ``(N, dim)``.
            where: ``cu_seqlens`` of packed sequences, or a cache of what stands before the tokens.

        Returns:
            States ``(N, dim)``, and logits ``(N, columns)`` of the positions after the tokens; ``x`` itself and None
            where all positions are known.
        """
        if self.position_transformer is None or self.position_head is None:
            return x, None
        assert where is not None
        return _run(self.position_transformer, self.position_head, x, where)

    def predict_contents(self, states: Tensor, next_rows: Tensor | None, where: Tensor | Cache) -> Tensor:
        """Run the content transformer.

        Args:
            states: Of :meth:`predict_positions`, ``(N, dim)``.
            next_rows: Rows of the next tokens' positions, ``(N,)`` int64; None if their vectors were added already.
            where: As there.

        Returns:
            Logits ``(N, contents)`` of the next contents.
        """
        if self.position_transformer is not None and next_rows is not None:
            states = states + self.position_vectors(next_rows)
        return _run(self.content_transformer, self.content_head, states, where)[1]

    def forward(self, sequence: CodeSequence, labels: Tensor | None = None) -> PriorOutput:
        """Predict the position and the content of every token; see :meth:`Prior.forward`."""
        chosen = self._labels_to_read(sequence, labels)
        tokens = self.tape.lay_out(sequence, chosen)
        grains = self.tape.grains[tokens.entries]
        read, following = tokens.inputs, tokens.inputs + 1
        x = self.dropout(self.embed(tokens.contents[read], tokens.rows[read], grains[read], tokens.steps))
        states, position_logits = self.predict_positions(x, tokens.cu_seqlens)
        content_logits = self.predict_contents(states, tokens.rows[following], tokens.cu_seqlens)
        targets = Targets(tokens.contents[following], tokens.columns[following], grains[following])
        content_losses = cross_entropy(content_logits, targets.contents)
        content_loss = content_losses.mean()
        position_loss, position_losses = torch.zeros_like(content_loss), None
        if position_logits is not None:
            position_losses = cross_entropy(position_logits, targets.columns)
            position_loss = self._mean_position_loss(position_losses, targets.grains)
        loss = content_loss + position_loss
        logits = content_logits, position_logits
        return PriorOutput(loss, content_loss, position_loss, *logits, targets, content_losses, position_losses)

    def token_counts(self, sequence: CodeSequence) -> Tensor:
        """Codes and special tokens of each granularity, the first token of each image left out."""
        tokens = self.tape.lay_out(sequence, torch.zeros(len(sequence), dtype=torch.int64, device=sequence.device))
        grains = self.tape.grains[tokens.entries[tokens.inputs + 1]]
        return torch.stack([(grains == g).sum() for g in range(self.config.num_granularities)])

    def _mean_position_loss(self, losses: Tensor, grains: Tensor) -> Tensor:
        """In a coarse-to-fine prior, as in the authors' code, every granularity has the same weight, however short."""
        if not self.tape.coarse_to_fine:
            return losses.mean()
        means = []
        for g in range(self.config.num_granularities):
            mine = grains == g
            means.append(torch.where(mine, losses, 0.0).sum() / mine.sum())
        return torch.stack(means).mean()

    def _draw(self, request: Request) -> CodeSequence:
        """Draw samples with cached keys and values.

        Once the coarser granularities of a coarse-to-fine tape are drawn, the finest positions are certain.

        Cost: each step reads one token of each slot. Keys and values of ``request.slots`` samples are kept.
        """
        sampling, slots = request.sampling, request.slots
        copies = torch.stack([request.labels, torch.full_like(request.labels, NULL)])[: sampling.copies]

        def plan(samples: Tensor) -> Plan:
            codes = None if request.known is None else request.known[samples]
            numbers = request.uniforms(samples, 2 * len(self.tape))
            return Plan(self.tape, copies[:, samples], numbers, codes, request.closed, request.stop_after)

        if copies.device.type == "cpu":
            slots = -(-slots // 4) * 4  # products of fewer than 4 rows round differently from larger ones
        with torch.inference_mode():  # ops take a shorter way on tensors that were made in it
            steps = self.new_steps(slots * sampling.copies, self.tape.max_tokens, sampling.cache)
            sampler = Sampler(self.tape, steps, slots, sampling, plan, copies.shape[1])
            return self.tape.to_sequence(sampler.run(request.progress), self.tape.order)

    def new_steps(self, num_rows: int, capacity: int, kind: CacheKind = "auto") -> CachedSteps:
        """Empty caches to sample with: ``num_rows`` samples of up to ``capacity`` tokens, kept as ``kind`` says."""
        return CachedSteps(self, num_rows, capacity, kind)


def _run(transformer: Transformer, head: Head, x: Tensor, where: Tensor | Cache) -> tuple[Tensor, Tensor]:
    """States ``(N, dim)``, and logits of the head."""
    out: tuple[Tensor, Tensor]
    out = transformer(x, where, head) if isinstance(where, Tensor) else transformer.step(x, where, head)
    return out
