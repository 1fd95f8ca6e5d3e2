"""Initial embeddings of a prior that know which codes look alike and which positions are near each other.

The authors' code draws every embedding at random, so that a prior must learn from the codes alone that
two of them are nearly the same patch, and that position 17 lies below position 1. Some hundreds of photographs do not
say that often enough. Only initial values differ here: the model and its training are the paper's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["start_from_codes"]

#: Root mean square of an embedding's numbers, as :func:`dqcore.nn.transformer.initialise` draws them.
SCALE = 0.02
#: Waves of the positions' features along a side of the image.
FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0)


@torch.no_grad()
def start_from_codes(model: Any, codes: Tensor, seed: int = 0) -> None:
    """Replace a prior's initial embeddings of codes, its head's weights for them, and its embeddings of positions.

    Args:
        model: A new prior, any :class:`~dqcore.models.priors.tape_prior.TapePrior`.
        codes: The tokenizer's codebook ``(K, D)``.
        seed: Of the random directions that the features are turned to.
    """
    generator = torch.Generator().manual_seed(seed)
    size = model.config.codebook_size
    features = _even(codes.detach().float().cpu())
    for weight in (model.content_embedding.weight, model.content_head[1].weight):
        weight[:size] = _turned(features, weight.shape[1], generator).to(weight)
    embedding = getattr(model, "position_embedding", None)
    if embedding is not None:
        tape = model.tape
        entries = tape.lookup  # of the codes, one at each place of each granularity
        places = _places(tape.positions[entries].cpu(), tape.grains[entries].cpu(), model.config.region_grid)
        vectors = _turned(_even(_waves(places)), embedding.weight.shape[1], generator)
        embedding.weight[tape.rows[entries]] = vectors.to(embedding.weight)


def _places(positions: Tensor, grains: Tensor, region_grid: tuple[int, int]) -> Tensor:
    """Where the middle of each code lies, ``(N, 2)``: down and right, in shares of the image."""
    rows, columns = (side * 2**grains for side in region_grid)
    return torch.stack([(positions // columns + 0.5) / rows, (positions % columns + 0.5) / columns], 1)


def _waves(places: Tensor) -> Tensor:
    angles = 2 * torch.pi * places[:, :, None] * torch.tensor(FREQUENCIES)
    return torch.cat([angles.sin(), angles.cos()], 2).flatten(1)


def _even(features: Tensor) -> Tensor:
    """Features ``(N, D)`` less their mean, whose squares have a mean of 1."""
    centred = features - features.mean(0)
    return centred / centred.square().mean().sqrt().clamp_min(1e-12)


def _turned(features: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    """Features ``(N, D)`` as vectors ``(N, dim)`` at :data:`SCALE`, with random directions for axes."""
    size = features.shape[1]
    axes = torch.randn(max(size, dim), min(size, dim), generator=generator)
    directions = torch.linalg.qr(axes).Q  # columns of length 1
    directions = directions.T if size <= dim else directions
    return features @ directions * SCALE * (max(dim, size) / size) ** 0.5
