"""DQ-Transformer: the coarse-to-fine prior over positions and contents (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqcore.codes import Order
from dqcore.models.priors.config import PriorConfig
from dqcore.models.priors.tape_prior import TapePrior
from dqcore.models.sampling.steps import Tables
from dqcore.models.tapes import coarse_to_fine_tape
from dqcore.nn.transformer import initialise

__all__ = ["PRESETS", "DQTransformer", "DQTransformerConfig"]


@dataclass(frozen=True)
class DQTransformerConfig(PriorConfig):
    """The defaults are ``dqtransformer-base``. Fields not listed here: :class:`PriorConfig`."""

    position_layers: int = 6
    content_layers: int = 18
    order: Order = "row-first"  # of the codes within a granularity

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_1("position_layers", "content_layers")


PRESETS: dict[str, DQTransformerConfig] = {
    "dqtransformer-base": DQTransformerConfig(),
    "dqtransformer-large": DQTransformerConfig(content_layers=42),
    "dqtransformer-small": DQTransformerConfig(
        dim=256, num_heads=4, position_layers=2, content_layers=3, max_steps=1028
    ),
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


class DQTransformer(TapePrior):
    """A Position-Transformer says where the next code stands, a Content-Transformer which code it is.

    ::

                   granularity 0       granularity 1
        read       start c0 c1 .. end  start c0 c1 ..
                     |   |  |  |   |     |   |  |  |
        position     p0  p1 p2 end start p0  p1 p2 end     p ascends within a granularity
        content      c0  c1 c2 end start c0  c1 c2 end     predicted once its position is known

    An image is read granularity after granularity: a start, its codes with ascending positions, an end. Contents share
    one embedding; positions have a table for each granularity; steps and granularities have embeddings of their own.
    There may be any number of granularities, and any grid whose longest image fits in ``max_steps``.

    Parameters for the paper's vocabularies: ``dqtransformer-base`` 308,884,480; ``dqtransformer-large`` 611,193,856,
    where the paper prints 608M.

    Args:
        config: A :class:`DQTransformerConfig`; see also :meth:`from_preset`.
    """

    Config = DQTransformerConfig
    PRESETS = PRESETS
    config: DQTransformerConfig

    def __init__(self, config: DQTransformerConfig) -> None:
        self.check_config(config)
        labels = config.num_labels
        with torch.device("cpu"):  # the tape's tables must have values even if the weights are on the meta device
            tape = coarse_to_fine_tape(
                config.region_grid, config.num_granularities, config.codebook_size, labels, config.order
            )
        regions = config.region_grid[0] * config.region_grid[1]
        columns = [(regions << 2 * g) + 2 + labels for g in range(config.num_granularities)]  # of each granularity
        contents = config.codebook_size + 2 + labels
        super().__init__(config, tape, config.position_layers, config.content_layers, contents, columns[-1])
        self.position_embedding = nn.Embedding(sum(columns), config.dim)
        self.grain_embedding = nn.Embedding(config.num_granularities, config.dim)
        initialise(self)

    def position_vectors(self, rows: Tensor) -> Tensor:
        """Rows of the position embedding."""
        return self.position_embedding(rows)

    def embed(self, contents: Tensor, rows: Tensor, grains: Tensor, steps: Tensor) -> Tensor:
        """The sum of content, position, step and granularity."""
        x = self.content_embedding(contents) + self.position_embedding(rows)
        return x + self.step_embedding[steps] + self.grain_embedding(grains)

    def tables(self) -> Tables:
        """All four."""
        embeddings = self.content_embedding, self.position_embedding, self.grain_embedding
        contents, positions, grains = (embedding.weight for embedding in embeddings)
        return Tables(contents, positions, self.step_embedding, grains)
