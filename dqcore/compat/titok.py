"""The quantizer of TiTok (1d-tokenizer, ``modeling.quantizer.quantizer``): same interface and state dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqcore.compat.lookup import check_map_shape, counts_of, lookup, nearest
from dqcore.distributed import rows_of_all_processes
from dqcore.errors import InputError, number_given, whole_given
from dqcore.ops.autocast import without_autocast

__all__ = ["VectorQuantizer"]


class VectorQuantizer(nn.Module):
    """Nearest code with a straight-through gradient in float32, of unit vectors with ``use_l2_norm``.

    Args:
        codebook_size: Number of codes K.
        token_size: Channels D.
        commitment_cost: Weight of the commitment ``mean((sg[e] - z)^2)``.
        use_l2_norm: Compare unit vectors, and return the code's.
        clustering_vq: In training, move rarely used codes towards the vector that is nearest to each.

    Attributes:
        embed_prob: Moving average of how often each code is used ``(K,)``; only with ``clustering_vq``.
        decay: Share of the old average that is kept, 0.99; only with ``clustering_vq``.

    Raises:
        InputError: A size that is not whole or below 1, or a weight that is no number.
    """

    embed_prob: Tensor

    def __init__(
        self,
        codebook_size: int = 1024,
        token_size: int = 256,
        commitment_cost: float = 0.25,
        use_l2_norm: bool = False,
        clustering_vq: bool = False,
    ) -> None:
        super().__init__()
        whole_given(1, codebook_size=codebook_size, token_size=token_size)
        number_given(commitment_cost=commitment_cost)
        self.codebook_size, self.token_size, self.commitment_cost = codebook_size, token_size, commitment_cost
        self.embedding = nn.Embedding(codebook_size, token_size)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)
        self.use_l2_norm = use_l2_norm
        self.clustering_vq = clustering_vq
        if clustering_vq:
            self.decay = 0.99
            self.register_buffer("embed_prob", torch.zeros(codebook_size))

    def forward(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Quantize a feature map.

        Args:
            z: ``(B, D, H, W)`` of any real numbers; computed in float32.

        Returns:
            The quantized map, and ``quantizer_loss`` (the sum of the next two), ``commitment_loss``,
            ``codebook_loss`` and ``min_encoding_indices (B, H, W)``.
        """
        check_map_shape("z", z, self.token_size)
        z = z.float()
        learn = self.clustering_vq and self.training
        if self.use_l2_norm:
            # The gradient of the norm reads the weight, which clustering is about to change: give it a copy.
            weight = self.embedding.weight.clone() if learn else self.embedding.weight
            codebook = F.normalize(weight, dim=-1)
            found = lookup(F.normalize(_rows(z), dim=-1), codebook)
            quantized = found.quantized.view(z.shape[0], *z.shape[2:], self.token_size).permute(0, 3, 1, 2)
        else:
            codebook = self.embedding.weight
            found = lookup(z, codebook)
            quantized = found.quantized
        if learn:
            self._cluster(_rows(z.detach()), codebook.detach(), found.codes)
        commitment = self.commitment_cost * found.commitment
        return quantized.contiguous(), {
            "quantizer_loss": commitment + found.codebook,
            "commitment_loss": commitment,
            "codebook_loss": found.codebook,
            "min_encoding_indices": found.codes.view(z.shape[0], *z.shape[2:]),
        }

    @torch.no_grad()
    def _cluster(self, rows: Tensor, codebook: Tensor, codes: Tensor) -> None:
        """Move the codes: the less a code is used, the closer to the nearest vector of all processes."""
        codes, rows = (rows_of_all_processes(values) for values in (codes, rows))
        units = F.normalize(rows, dim=-1) if self.use_l2_norm else rows
        share = counts_of(codes, self.codebook_size).to(self.embed_prob) / len(codes)
        self.embed_prob.mul_(self.decay).add_(share, alpha=1 - self.decay)
        closest = rows[nearest(codebook, units).clamp_min(0)]
        keep = torch.exp(-(self.embed_prob * self.codebook_size * 10) / (1 - self.decay) - 1e-3)[:, None]
        self.embedding.weight.data = self.embedding.weight.data * (1 - keep) + closest * keep

    @without_autocast
    def get_codebook_entry(self, indices: Tensor) -> Tensor:
        """The vectors of codes ``(N,)``, or weighted means of all codes for weights ``(N, K)``; autocast or not."""
        if indices.dim() == 1:
            vectors = self.embedding(indices)
        elif indices.dim() == 2:
            vectors = indices @ self.embedding.weight
        else:
            raise InputError(f"indices: expected codes (N,) or weights (N, K), got shape {tuple(indices.shape)}")
        return F.normalize(vectors, dim=-1) if self.use_l2_norm else vectors


def _rows(z: Tensor) -> Tensor:
    """The vectors ``(N, D)`` of a map ``(B, D, H, W)``."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
