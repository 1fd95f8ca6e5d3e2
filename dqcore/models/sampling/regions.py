"""Sampling from a prior that draws region after region, each region place after place."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dqcore.codes import CodeSequence
from dqcore.models.sampling.settings import Sampling
from dqcore.models.tape import NULL
from dqcore.nn.transformer import Cache, Head, Transformer
from dqcore.ops.reference.draw import guided

__all__ = ["RegionModel", "RegionSampler"]


class RegionModel(Protocol):
    """A prior with one transformer over regions and another over the places of a region.

    Its parts are documented at :class:`dqcore.models.priors.global_local.GlobalLocal`.
    """

    config: Any
    num_regions: int
    num_places: int
    content_embedding: nn.Embedding
    label_embedding: nn.Embedding
    region_embedding: nn.Parameter
    slot_embedding: nn.Parameter
    global_transformer: Transformer
    local_transformer: Transformer
    content_head: Head

    def may_end(self, place: int) -> bool:
        """Whether a region's codes may end before this place."""
        ...

    def predict_contents(self, contents: Tensor, labels: Tensor) -> Tensor:
        """Logits ``(B * R * P, K + 1)`` of all places, each from what stands before it."""
        ...

    def contents_of(self, sequence: CodeSequence, fill: int) -> Tensor:
        """Contents of all places ``(B, R, P)``; ``fill`` in regions that the sequence does not cover."""
        ...

    def to_sequence(self, contents: Tensor) -> CodeSequence:
        """The codes among the contents ``(B, R, P)``."""
        ...


class RegionSampler:
    """Draws ``n`` samples together: all of them draw the same place of the same region at the same time.

    What it draws is specified by :func:`dqcore.models.sampling.naive.generate_by_region`.

    Args:
        model: The model.
        labels: Labels of the samples, ``(n,)`` int64.
        sampling: How to draw.
    """

    def __init__(self, model: RegionModel, labels: Tensor, sampling: Sampling) -> None:
        self.model, self.draw, self.guidance, self.copies = model, sampling.contents, sampling.guidance, sampling.copies
        self.kind = sampling.cache
        labels_of_rows = torch.cat([labels, torch.full_like(labels, NULL)][: self.copies])
        self.batch = len(labels)
        # On a CPU, products of 4 rows and more agree in all bits, so that batches of fewer get rows that do not count.
        self.padding = -len(labels_of_rows) % 4 if labels.device.type == "cpu" else 0
        self.labels = torch.cat([labels_of_rows, labels_of_rows[:1].expand(self.padding)])
        self.global_cache = self._cache(model.global_transformer, model.num_regions)
        self.local_cache = self._cache(model.local_transformer, model.num_places)

    @torch.inference_mode()
    def run(self, numbers: Tensor, known: Tensor | None) -> Tensor:
        """Draw all regions.

        Args:
            numbers: Random numbers of :func:`dqcore.models.sampling.draw.uniforms`, ``(n, R, P)`` int64.
            known: Contents that are given, -1 elsewhere, ``(n, R, P)`` int64; None if none are.

        Returns:
            Contents of all places, ``(n, R, P)`` int64.
        """
        model = self.model
        contents = torch.empty(
            self.batch, model.num_regions, model.num_places, dtype=torch.int64, device=numbers.device
        )
        x = model.label_embedding(self.labels + 2)
        for region in range(model.num_regions):
            state = model.global_transformer.step(x, self.global_cache)
            self.global_cache.lengths.add_(1)
            given = None if known is None else known[:, region]
            self._draw_region(state, numbers[:, region], contents[:, region], given)
            vectors = model.content_embedding(self._for_all_rows(contents[:, region]))
            x = vectors.sum(1) + model.region_embedding[region]
        return contents

    def _draw_region(self, x: Tensor, numbers: Tensor, contents: Tensor, known: Tensor | None) -> None:
        """Write the contents of one region's places, ``(n, P)``."""
        model, placeholder = self.model, self.model.config.codebook_size
        ended = torch.zeros(self.batch, dtype=torch.bool, device=x.device)
        self.local_cache.lengths.zero_()
        for place in range(model.num_places):
            x = model.local_transformer.step(x + model.slot_embedding[place], self.local_cache)
            self.local_cache.lengths.add_(1)
            logits = model.content_head(x)[: self.batch * self.copies].float()
            logits = guided(logits, self.copies, self.guidance)
            drawn = self.draw(logits if model.may_end(place) else logits[:, :placeholder], numbers[:, place])
            contents[:, place] = torch.where(ended, placeholder, drawn)
            if known is not None:
                contents[:, place] = torch.where(known[:, place] < 0, contents[:, place], known[:, place])
            ended = contents[:, place] == placeholder
            x = model.content_embedding(self._for_all_rows(contents[:, place]))

    def _for_all_rows(self, contents: Tensor) -> Tensor:
        """The samples' contents, repeated for both copies and for the rows that do not count."""
        rows = contents.repeat(self.copies, *[1] * (contents.dim() - 1))
        return torch.cat([rows, rows[:1].expand(self.padding, *rows.shape[1:])])

    def _cache(self, transformer: Transformer, capacity: int) -> Cache:
        lengths = torch.zeros(len(self.labels), dtype=torch.int32, device=self.labels.device)
        return transformer.new_cache(capacity, lengths, torch.ones_like(lengths, dtype=torch.bool), self.kind)
