"""Priors in raster order: the dynamic one that the paper's supplement tried, and the plain one over fixed lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqcore.errors import InputError
from dqcore.models.priors.base import Prior
from dqcore.models.priors.config import PriorConfig
from dqcore.models.tape import raster_tape

__all__ = ["RASTER_DYNAMIC_PRESETS", "RASTER_PRESETS", "Raster", "RasterConfig", "RasterDynamic", "RasterDynamicConfig"]


@dataclass(frozen=True)
class RasterDynamicConfig(PriorConfig):
    """The layers of DQ-Transformer's base model. Fields not listed here: :class:`PriorConfig`."""

    position_layers: int = 6
    content_layers: int = 18

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("position_layers", "content_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class RasterConfig(PriorConfig):
    """A plain transformer over a grid of codes. Fields not listed here: :class:`PriorConfig`."""

    num_granularities: int = 1
    num_layers: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_granularities != 1:
            raise InputError(f"num_granularities: expected 1 for codes of fixed length, got {self.num_granularities}")
        if self.num_layers < 1:
            raise InputError(f"num_layers: expected at least 1, got {self.num_layers}")


RASTER_DYNAMIC_PRESETS: dict[str, RasterDynamicConfig] = {
    "raster-dynamic-base": RasterDynamicConfig(),
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
    "raster-tiny": RasterConfig(
        codebook_size=256, region_grid=(8, 8), dim=128, num_heads=4, num_layers=5, max_steps=320
    ),
}


class RasterDynamic(Prior):
    """Regions in raster order, each with its codes in raster order (supplement, section 3.2).

    A position has two levels: the region, and the place inside it, which also tells the region's granularity: one of
    ``1 + 4 + .. + 4**(G - 1)``. Only the place is predicted, since regions follow one another. Samples need not move
    in step: each goes on to its next region by itself, which makes batches possible that the authors did without.

    Args:
        config: A :class:`RasterDynamicConfig`; see also :meth:`from_preset`.
    """

    Config = RasterDynamicConfig
    PRESETS = RASTER_DYNAMIC_PRESETS
    config: RasterDynamicConfig
    _levels: Tensor

    def __init__(self, config: RasterDynamicConfig) -> None:
        if not isinstance(config, RasterDynamicConfig):
            raise TypeError(f"config: expected a RasterDynamicConfig, got {type(config).__name__}")
        with torch.device("cpu"):
            tape = raster_tape(config.region_grid, config.num_granularities, config.codebook_size)
        places = (4**config.num_granularities - 1) // 3
        super().__init__(config, tape, config.position_layers, config.content_layers, config.codebook_size, places)

    def _add_embeddings(self) -> None:
        config = self.config
        regions, places = config.region_grid[0] * config.region_grid[1], (4**config.num_granularities - 1) // 3
        starts = 2 + config.num_labels
        self.region_embedding = nn.Embedding(regions + starts, config.dim)
        self.place_embedding = nn.Embedding(places + 1, config.dim)
        cells = torch.stack([torch.arange(regions).repeat_interleave(places), torch.arange(places).repeat(regions)], 1)
        special = torch.stack([torch.arange(regions, regions + starts), torch.full((starts,), places)], 1)
        self.register_buffer("_levels", torch.cat([cells, special]), persistent=False)

    def _position_vectors(self, rows: Tensor) -> Tensor:
        regions, places = self._levels[rows].unbind(-1)
        return self.region_embedding(regions) + self.place_embedding(places)

    def _embed(self, contents: Tensor, rows: Tensor, grains: Tensor, steps: Tensor) -> Tensor:
        return self.content_embedding(contents) + self._position_vectors(rows) + self.step_embedding[steps]

    def _check_stages(self, closed: int, stop_after: int | None) -> None:
        if closed or stop_after is not None:
            raise InputError("stop_after, closed: granularities do not come one after the other in raster order")


class Raster(Prior):
    """A plain transformer over the codes of a fixed-length tokenizer in raster order: the baseline.

    All positions are known, so there is one stack of blocks, and a step embedding in place of positions.

    Args:
        config: A :class:`RasterConfig`; see also :meth:`from_preset`.
    """

    Config = RasterConfig
    PRESETS = RASTER_PRESETS
    config: RasterConfig

    def __init__(self, config: RasterConfig) -> None:
        if not isinstance(config, RasterConfig):
            raise TypeError(f"config: expected a RasterConfig, got {type(config).__name__}")
        with torch.device("cpu"):
            tape = raster_tape(config.region_grid, 1, config.codebook_size)
        super().__init__(config, tape, 0, config.num_layers, config.codebook_size, 0)

    def _add_embeddings(self) -> None:
        pass

    def _embed(self, contents: Tensor, rows: Tensor, grains: Tensor, steps: Tensor) -> Tensor:
        return self.content_embedding(contents) + self.step_embedding[steps]
