"""What the priors share that read and make the codes of an image one after the other along a tape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqcore.codes import CodeSequence, Order
from dqcore.errors import InputError
from dqcore.models.pretrained import Pretrained
from dqcore.models.priors.config import PriorOutput, Targets
from dqcore.models.priors.inputs import check_sequence, class_labels, drop_labels
from dqcore.models.sampling.cached_steps import CachedSteps
from dqcore.models.sampling.draw import Draw, uniforms
from dqcore.models.sampling.sampler import Sampler, Sampling
from dqcore.models.sampling.walk import Plan
from dqcore.models.tape import NULL, Tape
from dqcore.nn.transformer import Cache, Head, Transformer, initialise

__all__ = ["Prior"]


class Prior(Pretrained):
    """Embeddings, a transformer over positions, and one over contents that knows where the next content will stand.

    ``h = P(x)``, ``p(position_{t+1} | h_t)``, ``c = C(h + e)``, ``p(content_{t+1} | c_t)``, with ``e_t`` the embedding
    of position ``t + 1``.

    Args:
        config: The model's config.
        tape: The order of its tokens.
        position_layers: Blocks of the first transformer; 0 for a prior that knows all positions.
        content_layers: Blocks of the second.
        num_contents: Classes of the content head.
        num_columns: Classes of the position head.
    """

    config: Any
    position_transformer: Transformer | None
    position_head: Head | None

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
        self.tape = tape
        self.content_embedding = nn.Embedding(config.codebook_size + 2 + config.num_labels, config.dim)
        self.step_embedding = nn.Parameter(torch.zeros(config.max_steps, config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.position_transformer = self.position_head = None
        if position_layers:
            self.position_transformer = Transformer(config.dim, config.num_heads, position_layers, config.dropout)
            self.position_head = Head(config.dim, num_columns)
        self.content_transformer = Transformer(config.dim, config.num_heads, content_layers, config.dropout)
        self.content_head = Head(config.dim, num_contents)
        self._add_embeddings()
        initialise(self)

    def _add_embeddings(self) -> None:
        """Make the embeddings that only this prior has."""
        raise NotImplementedError

    def _position_vectors(self, rows: Tensor) -> Tensor:
        """Embedding of positions by their rows, ``(N, dim)``."""
        raise NotImplementedError

    def _embed(self, contents: Tensor, rows: Tensor, grains: Tensor, steps: Tensor) -> Tensor:
        """Embedding of tokens, ``(N, dim)``."""
        raise NotImplementedError

    def _position_loss(self, losses: Tensor, grains: Tensor) -> Tensor:
        """One number of the cross-entropies of all positions."""
        return losses.mean()

    def forward(self, sequence: CodeSequence, labels: Tensor | None = None) -> PriorOutput:
        """Predict every token of a batch from those before it in its image; no padding, nothing shared between images.

        Args:
            sequence: Codes of ``B`` images, in any order.
            labels: ``(B,)`` int64 in ``[-1, num_classes)``, -1 for no class; None if the prior has no classes.

        Returns:
            A :class:`PriorOutput`.

        Raises:
            TypeError: ``sequence`` is no :class:`CodeSequence`, or labels are no integers.
            ValueError: It has another grid, other granularities, codes that the codebook does not have, or the labels
                do not fit.

        Gradient: to all parameters.
        Cost: grows with the codes of the batch.
        """
        check_sequence(sequence, self.config)
        chosen = class_labels(labels, len(sequence), self.config.num_classes, sequence.device)
        if self.training and self.config.label_dropout:
            chosen = drop_labels(chosen, self.config.label_dropout)
        tokens = self.tape.lay_out(sequence, chosen)
        read, follow = tokens.inputs, tokens.inputs + 1
        x = self._embed(tokens.contents[read], tokens.rows[read], self.tape.grains[tokens.entries[read]], tokens.steps)
        targets = Targets(tokens.contents[follow], tokens.columns[follow], self.tape.grains[tokens.entries[follow]])
        x, position_logits = self._read(self.dropout(x), tokens.cu_seqlens)
        content_logits = self._write(x, tokens.rows[follow], tokens.cu_seqlens)
        return self._output(content_logits, position_logits, targets)

    def _output(self, content_logits: Tensor, position_logits: Tensor | None, targets: Targets) -> PriorOutput:
        content_loss = F.cross_entropy(content_logits.float(), targets.contents)
        position_loss = torch.zeros_like(content_loss)
        if position_logits is not None:
            losses = F.cross_entropy(position_logits.float(), targets.columns, reduction="none")
            position_loss = self._position_loss(losses, targets.grains)
        return PriorOutput(
            content_loss + position_loss, content_loss, position_loss, content_logits, position_logits, targets
        )

    def _read(self, x: Tensor, where: Tensor | Cache) -> tuple[Tensor, Tensor | None]:
        """States of tokens and the logits of the positions after them."""
        if self.position_transformer is None or self.position_head is None:
            return x, None
        x = _attend(self.position_transformer, x, where)
        return x, self.position_head(x)

    def _write(self, x: Tensor, rows: Tensor, where: Tensor | Cache) -> Tensor:
        """Logits of the contents at the next positions."""
        if self.position_transformer is not None:
            x = x + self._position_vectors(rows)
        return self.content_head(_attend(self.content_transformer, x, where))

    def checkpoint_activations(self, on: bool = True) -> None:
        """Keep only the blocks' inputs while training: less memory for a third more work."""
        for part in (self.position_transformer, self.content_transformer):
            if part is not None:
                part.checkpointing = on

    @torch.no_grad()
    def generate(
        self,
        batch_size: int,
        labels: Tensor | int | None = None,
        temperature: float = 1.0,
        top_k: int | None = 300,
        top_p: float = 1.0,
        position_temperature: float | None = None,
        position_top_k: int | None = None,
        position_top_p: float = 1.0,
        *,
        guidance: float = 1.0,
        seed: int = 0,
        first: int = 0,
        slots: int | None = None,
        given: CodeSequence | None = None,
        closed: int = 0,
        stop_after: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> CodeSequence:
        """Draw samples ``first .. first + batch_size - 1`` of a seed, with cached keys and values and no idle slots.

        Every result is valid: positions ascend, each region is covered exactly once, special tokens stand only where
        they may. Once the coarser granularities are known, order and coverage leave the finest positions no choice.

        Args:
            batch_size: Number of samples.
            labels: Class of all samples, or ``(batch_size,)`` int64, -1 for none; None without classes.
            temperature: Divides the contents' logits.
            top_k: Contents are drawn from the so many likeliest codes; None for all.
            top_p: Contents are drawn from the fewest likeliest codes whose probabilities reach this sum.
            position_temperature: As ``temperature``, for positions; by default the same.
            position_top_k: As ``top_k``, for positions.
            position_top_p: As ``top_p``, for positions.
            guidance: ``s`` in ``logits without class + s (logits with class - logits without class)``; needs a model
                trained with ``label_dropout``. 1 runs the model once for a sample, all else twice.
            seed: Sample i depends on seed and i alone.
            first: Index of the first sample.
            slots: Samples at once; each slot goes on to the next sample when its own has ended.
            given: ``batch_size`` images of which some regions are covered: they are kept as they are, and the model
                sees them when their turn in the order comes.
            closed: Granularities below this have no codes but the given ones: with what ``stop_after = closed - 1``
                returned as ``given``, sampling goes on from there to the same samples.
            stop_after: End after this granularity; the sequence then covers only some regions.
            progress: Called with the numbers of finished samples and of all.

        Returns:
            A coarse-to-fine sequence of ``batch_size`` images, on the model's device.

        Raises:
            ValueError: An argument does not fit the model.

        Gradient: none. Dropout is off.
        Determinism: the same samples for any batch beside them, on one machine with one number of threads; elsewhere
        a draw may tip where rounding moves a sum of probabilities past the number drawn.
        Cost: one token of one sample a step; keys and values of ``slots`` samples are kept.
        """
        config = self.config
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {batch_size}")
        if guidance != 1.0 and not config.label_dropout:
            raise InputError(f"guidance: expected 1 for a model without label_dropout, got {guidance}")
        self._check_stages(closed, stop_after)
        contents = Draw(temperature, top_k, top_p)
        position_temperature = temperature if position_temperature is None else position_temperature
        positions = Draw(position_temperature, position_top_k, position_top_p)
        device = self.step_embedding.device
        sampling = Sampling(contents, positions, guidance, 8 if device.type == "cuda" else 2)
        labels = torch.full((batch_size,), labels) if isinstance(labels, int) else labels
        chosen = class_labels(labels, batch_size, config.num_classes, device, may_be_none=config.label_dropout > 0)
        every = torch.stack([chosen, torch.full_like(chosen, NULL)])[: sampling.copies]
        known = None if given is None else self._given(given, batch_size)

        def plan(samples: Tensor) -> Plan:
            codes = None if known is None else known[samples]
            numbers = uniforms(seed, samples + first, 2 * len(self.tape))
            return Plan(self.tape, every[:, samples], numbers, codes, closed, stop_after)

        slots = min(batch_size, 128 if slots is None else slots)
        slots = -(-slots // 4) * 4 if device.type == "cpu" else slots  # products of 4 rows and more agree in all bits
        with torch.inference_mode():  # ops take a shorter way on tensors that were made in it
            steps = self.new_steps(slots * sampling.copies, self.tape.max_tokens)
            drawn = Sampler(self.tape, steps, slots, sampling, plan, batch_size).run(progress)
        return self.tape.to_sequence(drawn, self._order)

    def new_steps(self, num_rows: int, capacity: int) -> CachedSteps:
        """Empty caches to sample with: ``num_rows`` samples of up to ``capacity`` tokens."""
        return CachedSteps(self, num_rows, capacity)

    @property
    def _order(self) -> Order:
        return "row-first"

    def _check_stages(self, closed: int, stop_after: int | None) -> None:
        levels = self.config.num_granularities
        if not 0 <= closed < levels:
            raise InputError(f"closed: expected a number in [0, {levels}), got {closed}")
        if stop_after is not None and not 0 <= stop_after < levels:
            raise InputError(f"stop_after: expected a granularity in [0, {levels}), got {stop_after}")

    def _given(self, given: CodeSequence, batch_size: int) -> Tensor:
        """Given codes on their tapes, ``(batch_size, L)`` int64, -1 elsewhere."""
        check_sequence(given, self.config)
        if len(given) != batch_size:
            raise InputError(f"given: expected {batch_size} images, got {len(given)}")
        given = given.to(self.step_embedding.device)
        images = torch.arange(batch_size, device=given.device).repeat_interleave(given.lengths.long())
        known = torch.full((batch_size, len(self.tape)), -1, device=given.device)
        entries = self.tape.entries_of(given)
        known[images, entries] = given.codes
        companions, statuses = self.tape.rules[entries].unbind(-1)
        taken = (known[images[:, None], companions] >= 0) == (statuses > 0)
        if not bool(taken.all()) or int((known >= 0).sum()) != len(entries):
            raise InputError("given: expected whole regions, each once and with codes of one granularity")
        return known


def _attend(transformer: Transformer, x: Tensor, where: Tensor | Cache) -> Tensor:
    return transformer(x, where) if isinstance(where, Tensor) else transformer.step(x, where)
