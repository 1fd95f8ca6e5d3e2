"""Priors in raster order: the dynamic one that the paper's supplement tried, and the plain one for fixed lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqcore.errors import InputError
from dqcore.models.priors.config import PriorConfig
from dqcore.models.priors.tape_prior import TapePrior
from dqcore.models.sampling.steps import Tables
from dqcore.models.tapes import raster_tape
from dqcore.nn.constants import KeepsTables, device_of_tables
from dqcore.nn.transformer import initialise

__all__ = ["RASTER_DYNAMIC_PRESETS", "RASTER_PRESETS", "Raster", "RasterConfig", "RasterDynamic", "RasterDynamicConfig"]


@dataclass(frozen=True)
class RasterDynamicConfig(PriorConfig):
    """The layers of DQ-Transformer's base model. Fields not listed here: :class:`PriorConfig`."""

    position_layers: int = 6
    content_layers: int = 18

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_1("position_layers", "content_layers")


@dataclass(frozen=True)
class RasterConfig(PriorConfig):
    """A plain transformer over a grid of codes. Fields not listed here: :class:`PriorConfig`."""

    num_granularities: int = 1
    num_layers: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_granularities != 1:
            raise InputError(f"num_granularities: expected 1 for codes of fixed length, got {self.num_granularities}")
        self._at_least_1("num_layers")


RASTER_DYNAMIC_PRESETS: dict[str, RasterDynamicConfig] = {
    "raster-dynamic-base": RasterDynamicConfig(),
    "raster-dynamic-small": RasterDynamicConfig(
        dim=256, num_heads=4, position_layers=2, content_layers=3, max_steps=1028
    ),
    "raster-dynamic-tiny": RasterDynamicConfig(
        codebook_size=256,
        region_grid=(8, 8),
        dim=128,
        num_heads=4,
        position_layers=2,
        content_layers=3,
        max_steps=320,
    ),
}
RASTER_PRESETS: dict[str, RasterConfig] = {
    "raster-base": RasterConfig(),
    "raster-small": RasterConfig(dim=256, num_heads=4, num_layers=5, max_steps=1028),
    "raster-tiny": RasterConfig(
        codebook_size=256, region_grid=(8, 8), dim=128, num_heads=4, num_layers=5, max_steps=320
    ),
}


class RasterDynamic(KeepsTables, TapePrior):
    """Regions in raster order, each with its codes in raster order (supplement, section 3.2).

    A position has two parts: the region, and the place in it. The place also tells the region's granularity, since
    there are ``1 + 4 + .. + 4**(G - 1)`` places: those of a coarse code, then those of finer ones. Only the place is
    predicted, because regions follow one another. The samples of a batch need not be in the same region: each goes on
    to its next region by itself. The authors' code draws one sample at a time.

    Args:
        config: A :class:`RasterDynamicConfig`; see also :meth:`from_preset`.
    """

    Config = RasterDynamicConfig
    PRESETS = RASTER_DYNAMIC_PRESETS
    config: RasterDynamicConfig
    _region_and_place: Tensor

    def __init__(self, config: RasterDynamicConfig) -> None:
        self.check_config(config)
        with torch.device("cpu"):  # the tape's tables must have values even if the weights are on the meta device
            tape = raster_tape(config.region_grid, config.num_granularities, config.codebook_size)
        regions, places = config.region_grid[0] * config.region_grid[1], (4**config.num_granularities - 1) // 3
        super().__init__(config, tape, config.position_layers, config.content_layers, config.codebook_size, places)
        starts = 2 + config.num_labels
        self.region_embedding = nn.Embedding(regions + starts, config.dim)
        self.place_embedding = nn.Embedding(places + 1, config.dim)
        with torch.device("cpu"):
            cells = torch.cartesian_prod(torch.arange(regions), torch.arange(places))
            special = torch.cartesian_prod(torch.arange(regions, regions + starts), torch.tensor([places]))
        #: Rows of the two embeddings for each row of the tape.
        rows = torch.cat([cells, special]).to(device_of_tables(self.step_embedding.device))
        self.register_buffer("_region_and_place", rows, persistent=False)
        initialise(self)

    def position_vectors(self, rows: Tensor) -> Tensor:
        """The sum of region and place."""
        regions, places = self._region_and_place[rows].unbind(-1)
        return self.region_embedding(regions) + self.place_embedding(places)

    def embed(self, contents: Tensor, rows: Tensor, grains: Tensor, steps: Tensor) -> Tensor:
        """The sum of content, region, place and step."""
        return self.content_embedding(contents) + self.position_vectors(rows) + self.step_embedding[steps]

    def tables(self) -> Tables:
        """Region and place make one table of positions, which is computed here."""
        every = torch.arange(len(self._region_and_place), device=self.step_embedding.device)
        return Tables(self.content_embedding.weight, self.position_vectors(every), self.step_embedding, None)


class Raster(TapePrior):
    """A plain transformer over the codes of a fixed-length tokenizer in raster order: the baseline.

    All positions are known, so there is one stack of blocks, and the step embedding says where a code stands.

    Args:
        config: A :class:`RasterConfig`; see also :meth:`from_preset`.
    """

    Config = RasterConfig
    PRESETS = RASTER_PRESETS
    config: RasterConfig

    def __init__(self, config: RasterConfig) -> None:
        self.check_config(config)
        with torch.device("cpu"):  # the tape's tables must have values even if the weights are on the meta device
            tape = raster_tape(config.region_grid, 1, config.codebook_size)
        super().__init__(config, tape, 0, config.num_layers, config.codebook_size, 0)
        initialise(self)

    def embed(self, contents: Tensor, rows: Tensor, grains: Tensor, steps: Tensor) -> Tensor:
        """The sum of content and step."""
        return self.content_embedding(contents) + self.step_embedding[steps]

    def tables(self) -> Tables:
        """Without positions."""
        return Tables(self.content_embedding.weight, None, self.step_embedding, None)
