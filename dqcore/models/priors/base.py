"""What every prior offers: predicting the tokens of images, and drawing new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dqcore.codes import CodeSequence
from dqcore.errors import InputError
from dqcore.models.pretrained import Pretrained
from dqcore.models.priors.config import PriorOutput
from dqcore.models.priors.inputs import (
    check_given,
    check_places,
    check_sequence,
    class_labels,
    drop_labels,
    given_contents,
    labels_to_sample,
    slots_to_use,
)
from dqcore.models.priors.request import Request
from dqcore.models.sampling.settings import Sampling
from dqcore.models.tape import Tape
from dqcore.nn.attention import CacheKind
from dqcore.nn.transformer import Transformer

__all__ = ["Prior"]


class Prior(Pretrained):
    """A distribution over the code sequences of images.

    Subclasses: :class:`dqcore.models.priors.tape_prior.TapePrior`, with DQ-Transformer and the raster priors, and
    :class:`dqcore.models.priors.global_local.GlobalLocal`.
    """

    config: Any
    tape: Tape
    content_embedding: nn.Embedding

    def facts(self) -> dict[str, str]:
        """The codes that it predicts, its layers, and its classes if there are some."""
        config = self.config
        rows, columns = config.region_grid
        grains = f", {config.num_granularities} granularities" if config.num_granularities > 1 else ""
        layers = sum(len(part.blocks) for part in self.children() if isinstance(part, Transformer))
        found = {
            "codes": f"{config.codebook_size} codes in {rows} x {columns} regions{grains}",
            "layers": f"{layers} layers of {config.dim} channels",
        }
        return {**found, "classes": f"{config.num_classes} classes"} if config.num_classes else found

    def forward(self, sequence: CodeSequence, labels: Tensor | None = None) -> PriorOutput:
        """Predict every token of a batch from those before it in its image; images do not see one another.

        Args:
            sequence: Codes of ``B`` images, in any order.
            labels: ``(B,)`` int64 in ``[-1, num_classes)``, -1 for no class; None if the prior has no classes.

        Returns:
            A :class:`PriorOutput`.

        Raises:
            TypeError: ``sequence`` is no :class:`CodeSequence`, or labels are no integers.
            InputError: It has another grid, other granularities, codes that the codebook does not have, or the labels
                do not fit.

        Gradient: to all parameters.
        Cost: grows with the codes of the batch; nothing is padded.
        """
        raise NotImplementedError

    if TYPE_CHECKING:  # nn.Module's own __call__ returns Any

        def __call__(self, sequence: CodeSequence, labels: Tensor | None = None) -> PriorOutput: ...  # noqa: D102

    def _labels_to_read(self, sequence: CodeSequence, labels: Tensor | None) -> Tensor:
        """The labels ``(B,)`` of a batch that :meth:`forward` is given, checked; in training some are hidden."""
        check_sequence(sequence, self.config, self.content_embedding.weight.device)
        chosen = class_labels(labels, len(sequence), self.config.num_classes, sequence.device)
        hides = self.training and self.config.label_dropout
        return drop_labels(chosen, self.config.label_dropout) if hides else chosen

    def token_counts(self, sequence: CodeSequence) -> Tensor:
        """How many tokens of each granularity :meth:`forward` predicts of these images, ``(G,)`` int64."""
        raise NotImplementedError

    def losses_within(self, output: PriorOutput, counts: Tensor) -> tuple[Tensor, Tensor]:
        """What images add to the content and the position loss of a larger batch that they are a part of.

        Args:
            output: What :meth:`forward` returned for them.
            counts: :meth:`token_counts` of the whole batch.
        """
        content = output.content_losses.sum() / counts.sum()
        losses = output.position_losses
        if losses is None:
            return content, torch.zeros_like(content)
        if not self.tape.coarse_to_fine:
            return content, losses.sum() / counts.sum()
        sums = [torch.where(output.targets.grains == g, losses, 0.0).sum() for g in range(len(counts))]
        return content, (torch.stack(sums) / counts).mean()

    @torch.no_grad()
    def sample(
        self,
        batch_size: int,
        labels: Tensor | int | None = None,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        first: int = 0,
        slots: int | None = None,
        given: CodeSequence | None = None,
        closed: int = 0,
        stop_after: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> CodeSequence:
        """Draw samples ``first`` to ``first + batch_size - 1`` of a seed.

        Every result is valid: positions ascend, each region is covered exactly once, and special tokens stand only
        where they may. :mod:`dqcore.models.sampling.naive` specifies what is drawn.

        Args:
            batch_size: Number of samples.
            labels: Class of all samples, or ``(batch_size,)`` int64, -1 for none; None without classes.
            sampling: How to draw; by default :class:`dqcore.models.sampling.settings.Sampling` with its defaults.
            seed: Sample i depends on the seed and on i alone.
            first: Index of the first sample.
            slots: Number of samples drawn at once, by default 128.
            given: ``batch_size`` images of which some regions are covered. Their codes are kept, and the model sees
                them when their turn in the order comes.
            closed: Granularities below this one have no codes but the given ones. To go on with samples that were
                drawn with ``stop_after``, pass them as ``given`` with ``closed = stop_after + 1``: the result is what
                would have been drawn in one go.
            stop_after: End after this granularity; the sequence then covers only some regions.
            progress: Called with the number of finished samples and the number of all.

        Returns:
            A coarse-to-fine sequence of ``batch_size`` images, on the model's device.

        Raises:
            InputError: An argument does not fit the model.
            TypeError: ``given`` is no :class:`CodeSequence`, or labels are neither a number nor an integer tensor.

        Gradient: none. Dropout is off.
        Determinism: the same samples whatever else is in the batch, on one machine with one number of threads. On
            another machine rounding may move a sum of probabilities past the random number, so that another code is
            drawn; so may what ``sampling.cache`` rounds, which "auto" does for a float32 model on a GPU.
        """
        sampling, device = sampling or Sampling(), self.content_embedding.weight.device
        check_places(seed, first)
        chosen = labels_to_sample(labels, batch_size, sampling, self.config, device)
        self._check_stages(closed, stop_after)
        known = None
        if given is not None:
            check_given(given, batch_size, self.config)
            given = given.to(device)
            known = given_contents(given, self.tape)
        slots = slots_to_use(slots, batch_size)
        return self._draw(Request(chosen, sampling, seed, first, slots, given, known, closed, stop_after, progress))

    def _draw(self, request: Request) -> CodeSequence:
        """Draw what :meth:`sample` was asked for."""
        raise NotImplementedError

    def _check_stages(self, closed: int, stop_after: int | None) -> None:
        if not self.tape.coarse_to_fine and (closed or stop_after is not None):
            raise InputError("stop_after, closed: granularities do not come one after the other in raster order")
        count = self.config.num_granularities
        for name, grain in {"closed": closed, "stop_after": stop_after}.items():
            if grain is not None and grain not in range(count):
                raise InputError(f"{name}: expected a whole number in [0, {count}), got {grain}")

    def generate(
        self,
        batch_size: int,
        labels: Tensor | int | None = None,
        temperature: float = Sampling.temperature,
        top_k: int | None = Sampling.top_k,
        top_p: float = Sampling.top_p,
        position_top_k: int | None = Sampling.position_top_k,
        seed: int = 0,
        *,
        position_temperature: float | None = Sampling.position_temperature,
        position_top_p: float = Sampling.position_top_p,
        guidance: float = Sampling.guidance,
        cache: CacheKind = Sampling.cache,
        first: int = 0,
        slots: int | None = None,
        given: CodeSequence | None = None,
        closed: int = 0,
        stop_after: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> CodeSequence:
        """Draw samples: :meth:`sample` with the fields of :class:`Sampling` as arguments; see there for all of them."""
        sampling = Sampling(
            temperature, top_k, top_p, position_temperature, position_top_k, position_top_p, guidance, cache
        )
        return self.sample(
            batch_size,
            labels,
            sampling,
            seed=seed,
            first=first,
            slots=slots,
            given=given,
            closed=closed,
            stop_after=stop_after,
            progress=progress,
        )

    def checkpoint_activations(self, on: bool = True) -> None:
        """Keep only the blocks' inputs while training: less memory for a third more work."""
        for part in self.children():
            if isinstance(part, Transformer):
                part.checkpointing = on
