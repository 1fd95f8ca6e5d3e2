"""DQ-Transformer: the coarse-to-fine prior over positions and contents (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqcore.codes import Order, check_order
from dqcore.errors import InputError
from dqcore.models.priors.base import Prior
from dqcore.models.priors.config import PriorConfig
from dqcore.models.tape import coarse_to_fine_tape

__all__ = ["PRESETS", "DQTransformer", "DQTransformerConfig"]


@dataclass(frozen=True)
class DQTransformerConfig(PriorConfig):
    """The defaults are ``dqtransformer-base``. Fields not listed here: :class:`PriorConfig`."""

    position_layers: int = 6
    content_layers: int = 18
    order: Order = "row-first"  # of the codes within a granularity

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("position_layers", "content_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        check_order(self.order)


PRESETS: dict[str, DQTransformerConfig] = {
    "dqtransformer-base": DQTransformerConfig(),
    "dqtransformer-large": DQTransformerConfig(content_layers=42),
    "dqtransformer-tiny": DQTransformerConfig(
        codebook_size=256,
        region_grid=(8, 8),
        dim=128,
        num_heads=4,
        position_layers=2,
        content_layers=3,
        max_steps=320,
    ),
}


class DQTransformer(Prior):
    """A Position-Transformer says where the next code stands, a Content-Transformer which code it is.

    An image is read granularity after granularity: a start, its codes with ascending positions, an end. Contents share
    one embedding; positions have a table for each granularity; step and granularity have embeddings of their own. Any
    number of granularities works, as does any grid whose longest image fits in ``max_steps``.

    Parameters for the paper's vocabularies: ``dqtransformer-base`` 308,884,480; ``dqtransformer-large`` 611,193,856,
    of which the paper prints 608M.

    Args:
        config: A :class:`DQTransformerConfig`; see also :meth:`from_preset`.
    """

    Config = DQTransformerConfig
    PRESETS = PRESETS
    config: DQTransformerConfig

    def __init__(self, config: DQTransformerConfig) -> None:
        if not isinstance(config, DQTransformerConfig):
            raise TypeError(f"config: expected a DQTransformerConfig, got {type(config).__name__}")
        labels = config.num_labels
        with torch.device("cpu"):  # its tables are needed even where the weights are not
            tape = coarse_to_fine_tape(
                config.region_grid, config.num_granularities, config.codebook_size, labels, config.order
            )
        finest = (config.region_grid[0] * config.region_grid[1] << 2 * (config.num_granularities - 1)) + 2 + labels
        contents = config.codebook_size + 2 + labels
        super().__init__(config, tape, config.position_layers, config.content_layers, contents, finest)

    def _add_embeddings(self) -> None:
        config = self.config
        regions = config.region_grid[0] * config.region_grid[1]
        rows = sum((regions << 2 * g) + 2 + config.num_labels for g in range(config.num_granularities))
        self.position_embedding = nn.Embedding(rows, config.dim)
        self.grain_embedding = nn.Embedding(config.num_granularities, config.dim)

    def _position_vectors(self, rows: Tensor) -> Tensor:
        return self.position_embedding(rows)

    def _embed(self, contents: Tensor, rows: Tensor, grains: Tensor, steps: Tensor) -> Tensor:
        x = self.content_embedding(contents) + self.position_embedding(rows)
        return x + self.step_embedding[steps] + self.grain_embedding(grains)

    def _position_loss(self, losses: Tensor, grains: Tensor) -> Tensor:
        means = []
        for g in range(self.config.num_granularities):
            mine = grains == g
            means.append(torch.where(mine, losses, 0.0).sum() / mine.sum())
        return torch.stack(means).mean()

    @property
    def _order(self) -> Order:
        return self.config.order
