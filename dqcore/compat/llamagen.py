"""The quantizer of LlamaGen (``tokenizer.tokenizer_image.vq_model``): same interface and state dict."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqcore.compat.entropy import entropy_loss
from dqcore.compat.lookup import Found, check_map, lookup
from dqcore.errors import number_given, whole_given

__all__ = ["VectorQuantizer"]

#: How many of the last codes are remembered.
WINDOW = 65536

Losses = tuple[Tensor | None, Tensor | None, Tensor | None, float]


class VectorQuantizer(nn.Module):
    """Nearest code with a straight-through gradient, of unit vectors with ``l2_norm``.

    Args:
        n_e: Number of codes K.
        e_dim: Channels D.
        beta: Weight of the commitment ``mean((sg[e] - z)^2)``.
        entropy_loss_ratio: Weight of the entropy loss; with 0 it is not computed.
        l2_norm: Compare unit vectors, and return the code's.
        show_usage: Keep the last 65536 training codes and report the share of codes among them.

    Attributes:
        codebook_used: These codes ``(65536,)`` float32, 0 at first; only with ``show_usage``.

    Raises:
        InputError: A size that is not whole or below 1, or a weight that is no number.
    """

    codebook_used: Tensor

    def __init__(
        self, n_e: int, e_dim: int, beta: float, entropy_loss_ratio: float, l2_norm: bool, show_usage: bool
    ) -> None:
        super().__init__()
        whole_given(1, n_e=n_e, e_dim=e_dim)
        number_given(beta=beta, entropy_loss_ratio=entropy_loss_ratio)
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.entropy_loss_ratio, self.l2_norm, self.show_usage = entropy_loss_ratio, l2_norm, show_usage
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_e, 1.0 / n_e)
        if l2_norm:
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=-1)
        if show_usage:
            self.register_buffer("codebook_used", torch.zeros(WINDOW))

    def forward(self, z: Tensor) -> tuple[Tensor, Losses, tuple[None, None, Tensor]]:
        """Quantize a feature map.

        Args:
            z: ``(B, D, H, W)``.

        Returns:
            The quantized map; codebook, commitment and entropy loss (in training, else None) and the share of codes
            used (0 unless training with ``show_usage``); and None, None and the codes ``(N,)``.
        """
        check_map("z", z, self.e_dim)
        rows = z.permute(0, 2, 3, 1).reshape(-1, self.e_dim)
        if self.l2_norm:
            rows = F.normalize(rows, dim=-1)
        codebook = self._codebook()
        found = lookup(rows, codebook, losses=self.training)
        losses: Losses = (None, None, None, 0)
        if self.training:
            losses = self._losses(rows, codebook, found)
        quantized = found.quantized.view(z.shape[0], *z.shape[2:], self.e_dim).permute(0, 3, 1, 2)
        return quantized, losses, (None, None, found.codes)

    def _losses(self, rows: Tensor, codebook: Tensor, found: Found) -> Losses:
        usage = self._use(found.codes) if self.show_usage else 0
        commitment = self.beta * found.commitment
        if self.entropy_loss_ratio:
            entropy = self.entropy_loss_ratio * entropy_loss(rows, codebook)
        else:
            entropy = 0.0 * (found.commitment + found.codebook)
        return found.codebook, commitment, entropy, usage

    @torch.no_grad()
    def _use(self, codes: Tensor) -> float:
        """Remember these codes; the share of different numbers among those remembered."""
        last = codes[-WINDOW:]
        used = torch.cat([self.codebook_used, last.to(self.codebook_used)])[-WINDOW:]
        self.codebook_used.copy_(used)
        seen = torch.zeros(max(self.n_e, int(used.max()) + 1), dtype=torch.bool, device=used.device)
        return int(seen.index_fill_(0, used.long(), True).sum()) / self.n_e

    def _codebook(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=-1) if self.l2_norm else self.embedding.weight

    def get_codebook_entry(
        self, indices: Tensor, shape: Sequence[int] | None = None, channel_first: bool = True
    ) -> Tensor:
        """The vectors of codes.

        Args:
            indices: Codes, of any shape without ``shape``.
            shape: Of the result: ``(B, D, H, W)``, or ``(B, H, W, D)`` without ``channel_first``.
            channel_first: Which of the two.
        """
        vectors = self._codebook()[indices]
        if shape is None:
            return vectors
        if not channel_first:
            return vectors.view(*shape)
        return vectors.reshape(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2).contiguous()
