"""The quantizers of taming-transformers (``taming.modules.vqvae.quantize``): same interface and state dict."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from dqcore.compat.lookup import as_map, check_map, lookup, one_hot
from dqcore.compat.remap import MapQuantizer, Remapped
from dqcore.errors import InputError, number_given, whole_given
from dqcore.ops.code_sums import code_sums

__all__ = ["EMAVectorQuantizer", "EmbeddingEMA", "VectorQuantizer", "VectorQuantizer2"]


class VectorQuantizer(nn.Module):
    """Nearest code with a straight-through gradient; also returns the codes one-hot and their perplexity.

    Loss: ``mean((sg[e] - z)^2) + beta * mean((e - sg[z])^2)``: ``beta`` weighs the codebook's term, not the encoder's.

    Args:
        n_e: Number of codes K.
        e_dim: Channels D.
        beta: Weight of the codebook's term.

    Raises:
        InputError: A size that is not whole or below 1, or a weight that is no number.
    """

    def __init__(self, n_e: int, e_dim: int, beta: float) -> None:
        super().__init__()
        whole_given(1, n_e=n_e, e_dim=e_dim)
        number_given(beta=beta)
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_e, 1.0 / n_e)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Quantize a feature map.

        Args:
            z: ``(B, D, H, W)``.

        Returns:
            The quantized map; the loss; and perplexity, one-hot codes ``(N, K)`` and codes ``(N, 1)``.
        """
        check_map("z", z, self.e_dim)
        found = lookup(z, self.embedding.weight)
        hot, perplexity = one_hot(found.codes, self.n_e, z.dtype)
        loss = found.commitment + self.beta * found.codebook
        return found.quantized.contiguous(), loss, (perplexity, hot, found.codes[:, None])

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None) -> Tensor:
        """The vectors of codes ``(N,)``: ``(N, D)``, or a map where ``shape`` is ``(B, H, W, D)``."""
        return as_map(self.embedding(indices), shape)


class VectorQuantizer2(MapQuantizer):
    """Nearest code with a straight-through gradient; codes may be numbered anew.

    Args:
        n_e: Number of codes K.
        e_dim: Channels D.
        beta: Weight of one term of the loss, see ``legacy``.
        remap: A ``.npy`` file with the codes in use; codes are then given as places in it.
        unknown_index: What a code outside that file becomes: ``"random"``, ``"extra"`` (one more number) or a number.
        sane_index_shape: Return codes as ``(B, H, W)`` instead of ``(N,)``.
        legacy: Whether ``beta`` weighs the codebook's term ``mean((e - sg[z])^2)``; else the encoder's.

    Raises:
        InputError: A size that is not whole or below 1, or a weight that is no number.
    """

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float,
        remap: str | PathLike | None = None,
        unknown_index: int | str = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        whole_given(1, n_e=n_e, e_dim=e_dim)
        super().__init__(n_e, e_dim, beta, remap, unknown_index, sane_index_shape, legacy)
        self.e_dim = e_dim

    def forward(
        self, z: Tensor, temp: float | None = None, rescale_logits: bool = False, return_logits: bool = False
    ) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Quantize a feature map.

        Args:
            z: ``(B, D, H, W)``.
            temp: None or 1; this and the next two are there for the sake of the Gumbel quantizer's interface.
            rescale_logits: False.
            return_logits: False.

        Returns:
            The quantized map; the loss; and None, None and the codes: ``(N,)``, with ``remap`` ``(N, 1)``, with
            ``sane_index_shape`` ``(B, H, W)``.
        """
        for name, refused in (
            ("temp", temp is not None and temp != 1.0),
            ("rescale_logits", rescale_logits),
            ("return_logits", return_logits),
        ):
            if refused:
                raise InputError(f"{name}: has a meaning for the Gumbel quantizer only; leave it out")
        return self._quantize(z)


class EmbeddingEMA(nn.Module):
    """A codebook that follows moving averages; neither it nor they are trained by gradient.

    Args:
        num_tokens: Number of codes K.
        codebook_dim: Channels D.
        decay: Share of the old average that is kept at each update.
        eps: Added to every cluster size before it divides.

    Attributes:
        weight: The codes ``(K, D)``.
        cluster_size: Moving average of how many vectors each code had ``(K,)``.
        embed_avg: Moving average of the sum of these vectors ``(K, D)``.
        update: Whether training moves them.

    Raises:
        InputError: A size that is not whole or below 1, or a weight that is no number.
    """

    def __init__(self, num_tokens: int, codebook_dim: int, decay: float = 0.99, eps: float = 1e-5) -> None:
        super().__init__()
        whole_given(1, num_tokens=num_tokens, codebook_dim=codebook_dim)
        number_given(decay=decay, eps=eps)
        self.decay, self.eps = decay, eps
        weight = torch.randn(num_tokens, codebook_dim)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.cluster_size = nn.Parameter(torch.zeros(num_tokens), requires_grad=False)
        self.embed_avg = nn.Parameter(weight.clone(), requires_grad=False)
        self.update = True

    def forward(self, embed_id: Tensor) -> Tensor:
        """The vectors of an array of codes."""
        return nn.functional.embedding(embed_id, self.weight)

    @torch.no_grad()
    def cluster_size_ema_update(self, new_cluster_size: Tensor) -> None:
        """Move the cluster sizes towards those of a batch."""
        self.cluster_size.data.mul_(self.decay).add_(new_cluster_size, alpha=1 - self.decay)

    @torch.no_grad()
    def embed_avg_ema_update(self, new_embed_avg: Tensor) -> None:
        """Move the sums towards those of a batch."""
        self.embed_avg.data.mul_(self.decay).add_(new_embed_avg, alpha=1 - self.decay)

    @torch.no_grad()
    def weight_update(self, num_tokens: int) -> None:
        """Set every code to its average vector."""
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.eps) / (total + num_tokens * self.eps) * total
        self.weight.data.copy_(self.embed_avg / smoothed[:, None])


class EMAVectorQuantizer(Remapped):
    """Nearest code with a straight-through gradient and a codebook that follows moving averages.

    Loss: ``beta * mean((sg[e] - z)^2)``.

    Args:
        n_embed: Number of codes K.
        embedding_dim: Channels D.
        beta: Weight of the loss.
        decay: Share of the old averages that is kept at each training step.
        eps: Added to every cluster size before it divides.
        remap: None. The original never numbers codes anew in ``forward``, whatever it is given.
        unknown_index: Unused without ``remap``.

    Raises:
        InputError: If ``remap`` is given; a size that is not whole or below 1, or a weight that is no number.
    """

    def __init__(
        self,
        n_embed: int,
        embedding_dim: int,
        beta: float,
        decay: float = 0.99,
        eps: float = 1e-5,
        remap: Any = None,
        unknown_index: int | str = "random",
    ) -> None:
        super().__init__()
        if remap is not None:
            raise InputError(f"remap: expected None, as EMAVectorQuantizer returns codes as they are; got {remap!r}")
        whole_given(1, n_embed=n_embed, embedding_dim=embedding_dim)
        number_given(beta=beta)
        self.codebook_dim, self.num_tokens, self.beta = embedding_dim, n_embed, beta
        self.embedding = EmbeddingEMA(n_embed, embedding_dim, decay, eps)
        self._read_remap(None, unknown_index, n_embed)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Quantize a feature map; in training, then move the codebook.

        Args:
            z: ``(B, D, H, W)``.

        Returns:
            The quantized map; the loss; and perplexity, one-hot codes ``(N, K)`` and codes ``(N,)``.
        """
        check_map("z", z, self.codebook_dim)
        found = lookup(z, self.embedding.weight)
        hot, perplexity = one_hot(found.codes, self.num_tokens, z.dtype)
        if self.training and self.embedding.update:
            rows = z.detach().permute(0, 2, 3, 1).reshape(-1, self.codebook_dim)
            counts, sums = code_sums(rows, found.codes, self.num_tokens)
            self.embedding.cluster_size_ema_update(counts)
            self.embedding.embed_avg_ema_update(sums)
            self.embedding.weight_update(self.num_tokens)
        return found.quantized, self.beta * found.commitment, (perplexity, hot, found.codes)
