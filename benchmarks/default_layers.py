"""Quantizers as their users build them when they name only the sizes; each returns ``(map, codes, loss)``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dqcore

Result = tuple[Tensor, Tensor, Tensor]


class GradientTrained(nn.Module):
    """The formula of taming-transformers' ``VectorQuantizer2`` with what VQGAN's configurations leave as it is.

    The codebook is trained by the optimiser, from a start in ``[-1/K, 1/K]``. ``beta`` weighs the codebook's term
    (``legacy``), not the encoder's.
    """

    def __init__(self, dim: int, size: int, beta: float = 0.25) -> None:
        super().__init__()
        self.beta = beta
        self.codebook = nn.Parameter(torch.empty(size, dim).uniform_(-1 / size, 1 / size))

    def forward(self, features: Tensor) -> Result:
        """Quantize a map ``(B, dim, H, W)``."""
        vectors = features.movedim(1, -1)
        codes = dqcore.ops.nearest_code(vectors.detach().flatten(0, 2), self.codebook.detach()).view(vectors.shape[:3])
        quantized = self.codebook[codes]
        loss = F.mse_loss(vectors, quantized.detach()) + self.beta * F.mse_loss(quantized, vectors.detach())
        return (vectors + (quantized - vectors).detach()).movedim(-1, 1), codes, loss


class UnitVectors(nn.Module):
    """The formula of LlamaGen's ``VectorQuantizer`` at its model's defaults: unit vectors of 8 channels, beta 0.25.

    The model's 1x1 convolutions lead to these channels and back; its entropy loss has the weight 0.
    """

    def __init__(self, dim: int, size: int, codebook_dim: int = 8, beta: float = 0.25) -> None:
        super().__init__()
        self.beta = beta
        self.codebook = nn.Parameter(F.normalize(torch.empty(size, codebook_dim).uniform_(-1 / size, 1 / size), dim=-1))
        self.project_in, self.project_out = nn.Conv2d(dim, codebook_dim, 1), nn.Conv2d(codebook_dim, dim, 1)

    def forward(self, features: Tensor) -> Result:
        """Quantize a map ``(B, dim, H, W)``."""
        vectors = F.normalize(self.project_in(features).movedim(1, -1), dim=-1)
        codebook = F.normalize(self.codebook, dim=-1)
        codes = dqcore.ops.nearest_code(vectors.detach().flatten(0, 2), codebook.detach()).view(vectors.shape[:3])
        quantized = codebook[codes]
        loss = F.mse_loss(quantized, vectors.detach()) + self.beta * F.mse_loss(vectors, quantized.detach())
        return self.project_out((vectors + (quantized - vectors).detach()).movedim(-1, 1)), codes, loss


def vector_quantize_pytorch(dim: int, size: int) -> nn.Module:
    """The package's layer; it takes maps instead of sequences."""
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize(dim, size, accept_image_fmap=True)


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "dqcore": dqcore.DynamicQuantizer,
    "vector_quantize_pytorch": vector_quantize_pytorch,
    "taming": GradientTrained,
    "llamagen": UnitVectors,
}
