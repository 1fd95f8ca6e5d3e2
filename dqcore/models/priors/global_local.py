"""Global-Local: one transformer over regions, another over the codes of a region (supplement, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqcore.codes import CodeSequence
from dqcore.errors import InputError
from dqcore.models.pretrained import Pretrained
from dqcore.models.priors.config import PriorConfig, PriorOutput, Targets
from dqcore.models.priors.inputs import check_sequence, class_labels, drop_labels
from dqcore.models.sampling.draw import Draw, uniforms
from dqcore.models.tape import NULL, raster_tape
from dqcore.nn.transformer import Cache, Head, Transformer, initialise

__all__ = ["PRESETS", "GlobalLocal", "GlobalLocalConfig"]


@dataclass(frozen=True)
class GlobalLocalConfig(PriorConfig):
    """Fields not listed here: :class:`PriorConfig`; ``max_steps`` is not needed."""

    global_layers: int = 20
    local_layers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("global_layers", "local_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")


PRESETS: dict[str, GlobalLocalConfig] = {
    "global-local-base": GlobalLocalConfig(),
    "global-local-tiny": GlobalLocalConfig(
        codebook_size=256, region_grid=(8, 8), dim=128, num_heads=4, global_layers=3, local_layers=2
    ),
}


class GlobalLocal(Pretrained):
    """Regions in raster order, each summed up by the sum of its codes' embeddings.

    A region has ``4**(G - 1)`` slots: its codes in raster order, then placeholders (code ``K``, embedded as 0). A
    placeholder at slot ``4**g`` says that the region has granularity g; it may stand first nowhere else, and once it
    has, only placeholders follow, so every sample is valid.

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
        self.num_slots = 4 ** (config.num_granularities - 1)
        with torch.device("cpu"):
            self.tape = raster_tape(config.region_grid, config.num_granularities, size)
        self.content_embedding = nn.Embedding(size + 1, dim, padding_idx=size)
        self.label_embedding = nn.Embedding(2 + config.num_labels, dim)
        self.region_embedding = nn.Parameter(torch.zeros(self.num_regions, dim))
        self.slot_embedding = nn.Parameter(torch.zeros(self.num_slots, dim))
        self.dropout = nn.Dropout(config.dropout)
        self.global_transformer = Transformer(dim, config.num_heads, config.global_layers, config.dropout)
        self.local_transformer = Transformer(dim, config.num_heads, config.local_layers, config.dropout)
        self.content_head = Head(dim, size + 1)
        initialise(self)
        with torch.no_grad():
            self.content_embedding.weight[size].zero_()

    def checkpoint_activations(self, on: bool = True) -> None:
        """Keep only the blocks' inputs while training: less memory for a third more work."""
        self.global_transformer.checkpointing = self.local_transformer.checkpointing = on

    def forward(self, sequence: CodeSequence, labels: Tensor | None = None) -> PriorOutput:
        """Predict every slot of every region; as :meth:`dqcore.models.priors.base.Prior.forward`.

        Cost: grows with the slots, placeholders included.
        """
        check_sequence(sequence, self.config)
        batch = len(sequence)
        chosen = class_labels(labels, batch, self.config.num_classes, sequence.device)
        if self.training and self.config.label_dropout:
            chosen = drop_labels(chosen, self.config.label_dropout)
        slots = self._slots(sequence)
        vectors = self.content_embedding(slots)
        sums = vectors.sum(2) + self.region_embedding
        body = torch.cat([self.label_embedding(chosen + 2)[:, None], sums[:, :-1]], 1)
        ends = torch.arange(batch + 1, dtype=torch.int32, device=slots.device)
        body = self.global_transformer(self.dropout(body).flatten(0, 1), ends * self.num_regions)
        local = torch.cat([body[:, None], vectors[:, :, :-1].flatten(0, 1)], 1) + self.slot_embedding
        ends = torch.arange(len(body) + 1, dtype=torch.int32, device=slots.device) * self.num_slots
        logits = self.content_head(self.local_transformer(self.dropout(local).flatten(0, 1), ends))
        loss = F.cross_entropy(logits.float(), slots.flatten())
        grains = self._grains(slots)[..., None].expand(-1, -1, self.num_slots).flatten()
        targets = Targets(slots.flatten(), torch.zeros_like(grains), grains)
        return PriorOutput(loss, loss, torch.zeros_like(loss), logits, None, targets)

    @torch.no_grad()
    def generate(
        self,
        batch_size: int,
        labels: Tensor | int | None = None,
        temperature: float = 1.0,
        top_k: int | None = 300,
        top_p: float = 1.0,
        *,
        guidance: float = 1.0,
        seed: int = 0,
        first: int = 0,
        slots: int | None = None,
        given: CodeSequence | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> CodeSequence:
        """Draw samples; the arguments are those of :meth:`dqcore.models.priors.base.Prior.generate`.

        All samples take the same number of steps, ``slots`` of them at once.
        """
        config = self.config
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {batch_size}")
        if guidance != 1.0 and not config.label_dropout:
            raise InputError(f"guidance: expected 1 for a model without label_dropout, got {guidance}")
        device = self.region_embedding.device
        labels = torch.full((batch_size,), labels) if isinstance(labels, int) else labels
        chosen = class_labels(labels, batch_size, config.num_classes, device, may_be_none=config.label_dropout > 0)
        draw, known = Draw(temperature, top_k, top_p), None
        if given is not None:
            check_sequence(given, config)
            if len(given) != batch_size:
                raise InputError(f"given: expected {batch_size} images, got {len(given)}")
            known = self._slots(given.to(device), -1)
        parts = []
        for part in torch.arange(batch_size, device=device).split(128 if slots is None else slots):
            numbers = uniforms(seed, part + first, self.num_regions * self.num_slots)
            some = None if known is None else known[part]
            parts.append(
                _Pass(self, chosen[part], guidance).run(draw, numbers.unflatten(1, (-1, self.num_slots)), some)
            )
            if progress is not None:
                progress(int(part[-1]) + 1, batch_size)
        return self._sequence(torch.cat(parts))

    def _slots(self, sequence: CodeSequence, fill: int | None = None) -> Tensor:
        """Slots ``(B, R, D)`` of a sequence: codes, then placeholders; ``fill`` in regions it does not cover."""
        rows = self.tape.rows[self.tape.entries_of(sequence)]
        size = (4**self.config.num_granularities - 1) // 3
        images = torch.arange(len(sequence), device=sequence.device)
        images = images.repeat_interleave(sequence.lengths.long(), output_size=len(rows))
        regions, place = rows // size, rows % size - ((1 << 2 * sequence.grains) - 1) // 3
        placeholder = self.config.codebook_size
        shape = (len(sequence), self.num_regions, self.num_slots)
        slots = torch.full(shape, placeholder if fill is None else fill, device=sequence.device)
        if fill is not None:
            slots[images, regions] = placeholder
        slots[images, regions, place] = sequence.codes
        return slots

    def _grains(self, slots: Tensor) -> Tensor:
        """Granularity of each region, ``(B, R)``: how many of the slots ``4**g`` hold a code."""
        marks = [4**g for g in range(self.config.num_granularities - 1)]
        return (slots[..., marks] != self.config.codebook_size).sum(-1)

    def _sequence(self, slots: Tensor) -> CodeSequence:
        offsets = ((1 << 2 * self._grains(slots)) - 1) // 3
        size = (4**self.config.num_granularities - 1) // 3
        image, region, place = (slots != self.config.codebook_size).nonzero(as_tuple=True)
        contents = torch.full((len(slots), len(self.tape)), -1, device=slots.device)
        entries = 1 + region * size + offsets[image, region] + place  # the tape begins with a start
        contents[image, entries] = slots[image, region, place]
        return self.tape.to_sequence(contents, "row-first")


class _Pass:
    """Samples that move through all regions in step."""

    def __init__(self, model: GlobalLocal, labels: Tensor, guidance: float) -> None:
        self.model, self.guidance = model, guidance
        self.copies = 1 if guidance == 1.0 else 2
        rows = torch.cat([labels, torch.full_like(labels, NULL)][: self.copies])
        self.batch = len(labels)
        self.padding = (
            -len(rows) % 4 if rows.device.type == "cpu" else 0
        )  # products of 4 rows and more agree in all bits
        self.rows = torch.cat([rows, rows[:1].expand(self.padding)])
        self.body = self._cache(model.global_transformer, model.num_regions)
        self.local = self._cache(model.local_transformer, model.num_slots)

    @torch.inference_mode()
    def run(self, draw: Draw, numbers: Tensor, known: Tensor | None) -> Tensor:
        """Slots ``(n, R, D)``; those of ``known`` that are not -1 stay."""
        model = self.model
        slots = torch.empty(self.batch, model.num_regions, model.num_slots, dtype=torch.int64, device=numbers.device)
        x = model.label_embedding(self.rows + 2)
        for region in range(model.num_regions):
            state = model.global_transformer.step(x, self.body)
            self.body.lengths.add_(1)
            self._region(state, draw, numbers[:, region], slots[:, region], None if known is None else known[:, region])
            x = model.content_embedding(self._every(slots[:, region])).sum(1) + model.region_embedding[region]
        return slots

    def _region(self, x: Tensor, draw: Draw, numbers: Tensor, slots: Tensor, known: Tensor | None) -> None:
        """Fill the slots ``(n, D)`` of one region."""
        model, placeholder = self.model, self.model.config.codebook_size
        marks = {4**g for g in range(model.config.num_granularities - 1)}
        ended = torch.zeros(self.batch, dtype=torch.bool, device=x.device)
        self.local.lengths.zero_()
        for slot in range(model.num_slots):
            x = model.local_transformer.step(x + model.slot_embedding[slot], self.local)
            self.local.lengths.add_(1)
            logits = self._guide(model.content_head(x)[: self.batch * self.copies].float())
            drawn = draw(logits if slot in marks else logits[:, :placeholder], numbers[:, slot])
            slots[:, slot] = torch.where(ended, placeholder, drawn)
            if known is not None:
                slots[:, slot] = torch.where(known[:, slot] < 0, slots[:, slot], known[:, slot])
            ended = slots[:, slot] == placeholder
            x = model.content_embedding(self._every(slots[:, slot]))

    def _every(self, slots: Tensor) -> Tensor:
        """The samples' slots for each row that the model runs."""
        rows = slots.repeat(self.copies, *[1] * (slots.dim() - 1))
        return torch.cat([rows, rows[:1].expand(self.padding, *rows.shape[1:])])

    def _guide(self, logits: Tensor) -> Tensor:
        if self.copies == 1:
            return logits
        with_class, without = logits.chunk(2)
        return torch.lerp(without, with_class, self.guidance)

    def _cache(self, transformer: Transformer, capacity: int) -> Cache:
        lengths = torch.zeros(len(self.rows), dtype=torch.int32, device=self.rows.device)
        return transformer.new_cache(capacity, lengths, torch.ones_like(lengths, dtype=torch.bool))
