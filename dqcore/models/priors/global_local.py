"""Global-Local: one transformer over regions, another over the codes of a region (supplement, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqcore.codes import CodeSequence
from dqcore.errors import InputError
from dqcore.models.priors.base import Prior
from dqcore.models.priors.config import PriorConfig, PriorOutput, Targets
from dqcore.models.priors.request import Request
from dqcore.models.sampling.regions import RegionSampler
from dqcore.models.sampling.settings import Sampling
from dqcore.models.tapes import raster_tape
from dqcore.nn.constants import device_of_tables
from dqcore.nn.transformer import Head, Transformer, initialise
from dqcore.ops.cross_entropy import cross_entropy

__all__ = ["PRESETS", "GlobalLocal", "GlobalLocalConfig"]


@dataclass(frozen=True)
class GlobalLocalConfig(PriorConfig):
    """Fields not listed here: :class:`PriorConfig`; ``max_steps`` is not used."""

    global_layers: int = 20
    local_layers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_1("global_layers", "local_layers")


PRESETS: dict[str, GlobalLocalConfig] = {
    "global-local-base": GlobalLocalConfig(),
    "global-local-small": GlobalLocalConfig(dim=256, num_heads=4, global_layers=3, local_layers=2),
    "global-local-tiny": GlobalLocalConfig(
        codebook_size=256, region_grid=(8, 8), dim=128, num_heads=4, global_layers=3, local_layers=2
    ),
}


class GlobalLocal(Prior):
    """A global transformer reads regions in raster order; a local one draws the codes of a region.

    ::

        region r - 1: sum of its codes' vectors -> global_transformer -> state of region r
        state, code 0, code 1, ..               -> local_transformer  -> code 0, code 1, code 2, ..

    A region has ``P = 4**(G - 1)`` *places*, as many as codes of the finest granularity. A region of granularity g has
    its ``4**g`` codes in raster order in the first places, and *placeholders* (code ``K``, whose vector is 0) in the
    others. So a placeholder can stand first at the places ``4**g`` only, and after it there are only placeholders; the
    sampler lets nothing else be drawn, so every sample is valid. (``slot_embedding`` is the embedding of places.)

    Args:
        config: A :class:`GlobalLocalConfig`; see also :meth:`from_preset`.
    """

    Config = GlobalLocalConfig
    PRESETS = PRESETS
    config: GlobalLocalConfig

    def __init__(self, config: GlobalLocalConfig) -> None:
        super().__init__(config)
        size, dim = config.codebook_size, config.dim
        self.num_regions = config.region_grid[0] * config.region_grid[1]
        self.num_places = 4 ** (config.num_granularities - 1)
        with torch.device("cpu"):  # the tape's tables must have values even if the weights are on the meta device
            tape = raster_tape(config.region_grid, config.num_granularities, size)
        self.content_embedding = nn.Embedding(size + 1, dim, padding_idx=size)
        self.label_embedding = nn.Embedding(2 + config.num_labels, dim)
        self.region_embedding = nn.Parameter(torch.zeros(self.num_regions, dim))
        self.tape = tape.to(device_of_tables(self.region_embedding.device))
        self.slot_embedding = nn.Parameter(torch.zeros(self.num_places, dim))
        self.dropout = nn.Dropout(config.dropout)
        self.global_transformer = Transformer(dim, config.num_heads, config.global_layers, config.dropout)
        self.local_transformer = Transformer(dim, config.num_heads, config.local_layers, config.dropout)
        self.content_head = Head(dim, size + 1)
        initialise(self)
        with torch.no_grad():
            self.content_embedding.weight[size].zero_()

    def may_end(self, place: int) -> bool:
        """Whether a region's codes may end before this place, so that a placeholder stands there."""
        return place in (4**g for g in range(self.config.num_granularities - 1))

    def forward(self, sequence: CodeSequence, labels: Tensor | None = None) -> PriorOutput:
        """Predict every place of every region; see :meth:`Prior.forward`.

        Cost: grows with the places, placeholders included.
        """
        chosen = self._labels_to_read(sequence, labels)
        contents = self.contents_of(sequence, self.config.codebook_size)
        logits = self.predict_contents(contents, chosen)
        losses = cross_entropy(logits, contents.flatten())
        loss = losses.mean()
        grains = self._grains(contents)[..., None].expand(-1, -1, self.num_places).flatten()
        targets = Targets(contents.flatten(), torch.zeros_like(grains), grains)
        return PriorOutput(loss, loss, torch.zeros_like(loss), logits, None, targets, losses, None)

    def token_counts(self, sequence: CodeSequence) -> Tensor:
        """Places of the regions of each granularity, placeholders included."""
        grains = self._grains(self.contents_of(sequence, self.config.codebook_size))
        return self.num_places * torch.stack([(grains == g).sum() for g in range(self.config.num_granularities)])

    def predict_contents(self, contents: Tensor, labels: Tensor) -> Tensor:
        """Predict each place from the places before it in its region and from the regions before.

        Args:
            contents: Codes and placeholders, ``(B, R, P)`` int64.
            labels: ``(B,)`` int64, :data:`dqcore.models.tape.NULL` where an image has no class.

        Returns:
            Logits ``(B * R * P, K + 1)``.
        """
        vectors = self.content_embedding(contents)
        sums = vectors.sum(2) + self.region_embedding
        x = torch.cat([self.label_embedding(labels + 2)[:, None], sums[:, :-1]], 1)
        ends = torch.arange(len(contents) + 1, dtype=torch.int32, device=contents.device)
        states = self.global_transformer(self.dropout(x).flatten(0, 1), ends * self.num_regions)
        x = torch.cat([states[:, None], vectors[:, :, :-1].flatten(0, 1)], 1) + self.slot_embedding
        ends = torch.arange(len(states) + 1, dtype=torch.int32, device=contents.device) * self.num_places
        return self.content_head(self.local_transformer(self.dropout(x).flatten(0, 1), ends))

    def _draw(self, request: Request) -> CodeSequence:
        """Draw samples, ``request.slots`` of them at once, which all take the same number of steps.

        Settings for positions are refused; ``closed`` and ``stop_after`` were, as in every raster order.
        """
        _refuse_positions(request.sampling)
        known = None if request.given is None else self.contents_of(request.given, -1)
        parts, count = [], len(request.labels)
        for part in torch.arange(count, device=request.labels.device).split(request.slots):
            numbers = request.uniforms(part, self.num_regions * self.num_places)
            numbers = numbers.unflatten(1, (self.num_regions, self.num_places))
            some = None if known is None else known[part]
            parts.append(RegionSampler(self, request.labels[part], request.sampling).run(numbers, some))
            if request.progress is not None:
                request.progress(int(part[-1]) + 1, count)
        return self.to_sequence(torch.cat(parts))

    def to_sequence(self, contents: Tensor) -> CodeSequence:
        """The codes among the contents of places, ``(B, R, P)`` int64."""
        offsets = ((1 << 2 * self._grains(contents)) - 1) // 3
        size = (4**self.config.num_granularities - 1) // 3
        image, region, place = (contents != self.config.codebook_size).nonzero(as_tuple=True)
        on_tape = torch.full((len(contents), len(self.tape)), -1, device=contents.device)
        entries = 1 + region * size + offsets[image, region] + place  # the tape begins with a start
        on_tape[image, entries] = contents[image, region, place]
        return self.tape.to_sequence(on_tape, "row-first")

    def contents_of(self, sequence: CodeSequence, fill: int) -> Tensor:
        """Contents of all places ``(B, R, P)``: codes, then placeholders; ``fill`` in regions that are not covered."""
        rows = self.tape.rows[self.tape.entries_of(sequence)]
        size = (4**self.config.num_granularities - 1) // 3
        images = torch.arange(len(sequence), device=sequence.device)
        images = images.repeat_interleave(sequence.lengths.long(), output_size=len(rows))
        regions, places = rows // size, rows % size - ((1 << 2 * sequence.grains) - 1) // 3
        contents = torch.full((len(sequence), self.num_regions, self.num_places), fill, device=sequence.device)
        contents[images, regions] = self.config.codebook_size
        contents[images, regions, places] = sequence.codes
        return contents

    def _grains(self, contents: Tensor) -> Tensor:
        """Granularity of each region, ``(B, R)``: how many of the places ``4**g`` hold a code."""
        grains = torch.zeros_like(contents[..., 0])
        for g in range(self.config.num_granularities - 1):  # a list of places as index would be copied to a GPU
            grains += contents[..., 4**g] != self.config.codebook_size
        return grains


def _refuse_positions(sampling: Sampling) -> None:
    for name in ("position_temperature", "position_top_k", "position_top_p"):
        default = getattr(Sampling, name)
        if getattr(sampling, name) != default:
            raise InputError(f"{name}: expected {default}, a Global-Local prior has no positions to draw")
