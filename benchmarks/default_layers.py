"""Quantizers as their users build them when they name only the sizes; each returns ``(map, codes, loss)``.

taming-transformers and LlamaGen are no packages: their layers are those of ``dqcore.compat``, which compute the same.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

import dqcore
from dqcore.compat import llamagen, taming

Result = tuple[Tensor, Tensor, Tensor]


class Taming(nn.Module):
    """taming-transformers' layer as VQGAN's configurations have it: trained by gradient, ``beta`` 0.25, ``legacy``."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.layer = taming.VectorQuantizer2(size, dim, beta=0.25, sane_index_shape=True)

    def forward(self, features: Tensor) -> Result:
        """Quantize a map ``(B, dim, H, W)``."""
        quantized, loss, (_, _, codes) = self.layer(features)
        return quantized, codes, loss


class LlamaGen(nn.Module):
    """LlamaGen's layer at its model's defaults: 8 channels, unit vectors, commitment 0.25, entropy loss of weight 0.

    The model's 1x1 convolutions lead to these channels and back.
    """

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.layer = llamagen.VectorQuantizer(size, 8, beta=0.25, entropy_loss_ratio=0.0, l2_norm=True, show_usage=True)
        self.project_in, self.project_out = nn.Conv2d(dim, 8, 1), nn.Conv2d(8, dim, 1)

    def forward(self, features: Tensor) -> Result:
        """Quantize a map ``(B, dim, H, W)``."""
        vectors = self.project_in(features)
        quantized, losses, (_, _, codes) = self.layer(vectors)
        loss = sum((part for part in losses[:3] if part is not None), features.new_zeros(()))  # none in evaluation
        return self.project_out(quantized), codes.view(vectors[:, 0].shape), loss


def vector_quantize_pytorch(dim: int, size: int) -> nn.Module:
    """The package's layer; it takes maps instead of sequences."""
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize(dim, size, accept_image_fmap=True)


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "dqcore": dqcore.DynamicQuantizer,
    "vector_quantize_pytorch": vector_quantize_pytorch,
    "taming": Taming,
    "llamagen": LlamaGen,
}
