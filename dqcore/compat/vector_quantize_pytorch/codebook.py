"""The codebook: buffers, moving averages, the start by k-means, and the revival of unused codes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dqcore.compat.vector_quantize_pytorch.layout import rows_mask
from dqcore.compat.vector_quantize_pytorch.passing import unit_vectors
from dqcore.compat.vector_quantize_pytorch.quantize import Found, Wish, find
from dqcore.compat.vector_quantize_pytorch.sampling import code_statistics, draw, draw_of_all, kmeans
from dqcore.compat.vector_quantize_pytorch.search import unit
from dqcore.errors import InputError

__all__ = ["Averages", "Codebook", "Weight"]

#: How much each code's averages move: a factor of ``1 - decay`` for each, or what gives it from (sums, counts).
Weight = Tensor | Callable[[Tensor, Tensor], Tensor]
#: What a call says of the averages: the weight, whether to accumulate, whether the codes follow.
Averages = tuple[Weight | None, bool, bool | None]


class Codebook(nn.Module):
    """C codebooks of K codes. The state-dict keys are those of the other package.

    Attributes:
        initted: Whether the codes have been set, bool ``()``; False until the first batch of a k-means start.
        cluster_size: Moving average of the vectors of each code, ``(C, K)``.
        embed_avg: Moving average of their sums, ``(C, K, d)``.
        embed: The codes, ``(C, K, d)``; a parameter if they are learned by gradient.
    """

    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int = 1,
        *,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        decay: float = 0.8,
        eps: float = 1e-5,
        threshold_ema_dead_code: float = 2,
        use_ddp: bool = False,
        learnable_codebook: bool = False,
        ema_update: bool = True,
        manual_ema_update: bool = False,
        use_cosine_sim: bool = False,
        vq_bridge: nn.Module | None = None,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 1.0,
        straight_through: bool = False,
    ) -> None:
        super().__init__()
        if use_ddp and num_codebooks > 1 and kmeans_init:
            raise InputError("kmeans_init: cannot be used with separate_codebook_per_head among several processes")
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
        self.kmeans_iters, self.decay, self.eps = kmeans_iters, decay, eps
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.use_ddp, self.sync_kmeans = use_ddp, sync_kmeans
        self.ema_update, self.manual_ema_update = ema_update, manual_ema_update
        self.stochastic_sample_codes, self.sample_codebook_temp = stochastic_sample_codes, sample_codebook_temp
        self.straight_through = straight_through
        self.learnable_codebook, self.use_cosine_sim = learnable_codebook, use_cosine_sim
        embed = torch.zeros(num_codebooks, codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            embed = unit(embed) if use_cosine_sim else embed
        self.register_buffer("initted", torch.tensor(not kmeans_init))
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        if learnable_codebook:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)
        self.vq_bridge = vq_bridge

    def forward(self, z: Tensor, wish: Wish, mask: Tensor | None, averages: Averages | None) -> Found:
        """Look ``z (C, B', N, d)`` up, and learn from it if ``averages`` says how; ``mask (B, N)`` is of the sequences.

        Outside of autocast: the codes are those of the float32 values.
        """
        if torch.is_autocast_enabled(z.device.type):
            with torch.autocast(z.device.type, enabled=False):
                return self.forward(z, wish, mask, averages)
        z = z.float()
        rows = z.detach().flatten(1, 2)
        if mask is not None:
            mask = rows_mask(mask, z)
        if not self.initted:
            self.init_embed_(rows, mask)
        found = find(z, self.codes(), wish)
        if averages is not None:
            self.update_codebook(rows, found.codes.flatten(1, 2), mask, *averages)
        return found

    @property
    def has_dead_code_replacement(self) -> bool:
        """Whether unused codes are replaced while training."""
        return self.threshold_ema_dead_code > 0

    def transform_input(self, x: Tensor) -> Tensor:
        """What is looked up in place of ``x``: unit vectors with ``use_cosine_sim``."""
        return unit_vectors(x) if self.use_cosine_sim else x

    def codes(self) -> Tensor:
        """The codes in float32, with their gradient if they are learned; with a bridge, what it makes of them."""
        embed = self.embed if self.learnable_codebook else self.embed.detach()
        embed = embed if embed.dtype == torch.float32 else embed.float()
        return embed if self.vq_bridge is None else self.vq_bridge(embed)

    @torch.no_grad()
    def init_embed_(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Start from the k-means of ``rows (C, M, d)``, float32, of those that the mask ``(M,)`` keeps."""
        if self.initted:
            return
        if mask is not None:
            rows = rows[:, mask]
        if rows.shape[1] == 0:
            raise InputError("x: k-means needs at least one vector to start the codebook from")
        if rows.shape[1] < self.codebook_size:
            warnings.warn(
                f"k-means starts {self.codebook_size} codes from {rows.shape[1]} vectors: some codes will be equal",
                stacklevel=2,
            )
        everywhere = self.use_ddp and self.sync_kmeans
        means, counts = kmeans(
            rows, self.codebook_size, self.kmeans_iters, cosine=self.use_cosine_sim, everywhere=everywhere
        )
        self.embed_avg.copy_(means * counts.unsqueeze(-1))
        self.cluster_size.copy_(counts)
        self.update_ema()
        self.initted.fill_(True)

    @torch.no_grad()
    def update_codebook(
        self,
        rows: Tensor,
        codes: Tensor,
        mask: Tensor | None = None,
        weight: Weight | None = None,
        accumulate: bool = False,
        ema_update: bool | None = None,
    ) -> None:
        """Move the averages towards a batch, set the codes from them, and replace unused codes.

        Args:
            rows: Vectors ``(C, M, d)``, float32.
            codes: Their codes, ``(C, M)``.
            mask: Which of the M vectors count, ``(M,)`` bool.
            weight: Factors of ``1 - decay``, ``(K,)`` or ``(C, K)``, or a function of (sums, counts) that gives them.
            accumulate: Only keep the statistics; the next update adds them to its own.
            ema_update: Whether the codes follow the averages, by default as the codebook was built.
        """
        ema_update = self.ema_update if ema_update is None else ema_update
        if not ema_update and not self.has_dead_code_replacement:
            return
        counts, sums = code_statistics(rows, codes, self.codebook_size, mask)
        if self.use_ddp:
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        if weight is not None and not isinstance(weight, Tensor):
            weight = weight(sums, counts)
        for average, new in ((self.cluster_size, counts), (self.embed_avg, sums)):
            if accumulate:
                average.grad = new.to(average) if average.grad is None else average.grad.add_(new)
            else:
                _move(average, new, self.decay, weight)
        if accumulate:
            return
        if ema_update and not self.manual_ema_update:
            self.update_ema()
        self.expire_codes_(rows, mask)

    def update_ema(self) -> None:
        """Set the codes to the averages: sums by counts, these smoothed so that none is 0."""
        total = self.cluster_size.sum(-1, keepdim=True)
        sizes = (self.cluster_size + self.eps).mul_(total / (total + self.codebook_size * self.eps))
        torch.div(self.embed_avg, sizes.unsqueeze(-1), out=self.embed.data)
        if self.use_cosine_sim:
            self.embed.data.copy_(unit(self.embed.data))

    def expire_codes_(self, vectors: Tensor, mask: Tensor | None = None) -> None:
        """Replace, while training, the codes that fewer vectors than the threshold chose by vectors of a batch.

        Args:
            vectors: ``(C, ..., d)``, a batch for each codebook.
            mask: Which of each codebook's vectors may be taken, ``(M,)`` bool.
        """
        if not self.has_dead_code_replacement or not self.training:
            return
        expired = self.cluster_size < self.threshold_ema_dead_code
        if not bool(expired.any()):
            return
        vectors = unit(vectors.detach()) if self.use_cosine_sim else vectors.detach()
        for which, (some, dead) in enumerate(zip(vectors.flatten(1, -2).unbind(), expired.unbind(), strict=False)):
            self._replace(which, some if mask is None else some[mask], dead)

    def _replace(self, which: int, vectors: Tensor, dead: Tensor) -> None:
        """Replace the dead codes of one codebook, at most as many as there are vectors."""
        if vectors.numel() == 0:
            return
        index = dead.nonzero()[:, 0]
        if self.use_ddp and self.sync_kmeans:
            drawn = draw_of_all(vectors, len(index))
        else:
            if len(index) > len(vectors):
                some = torch.randperm(len(index), device=index.device)[: len(vectors)]
                index = index[some].sort().values
            drawn = draw(vectors, len(index))
        drawn = drawn.to(self.embed.data)
        self.embed.data[which, index] = drawn
        self.cluster_size[which, index] = self.threshold_ema_dead_code
        self.embed_avg[which, index] = drawn * self.threshold_ema_dead_code


def _move(average: Tensor, new: Tensor, decay: float, weight: Tensor | None) -> None:
    """``average += (1 - decay) * weight * (new - average)``, ``new`` with what was accumulated before."""
    if average.grad is not None:
        new = new + average.grad
        average.grad = None
    rate: float | Tensor = 1 - decay
    if weight is not None:
        weight = weight.unsqueeze(0) if weight.dim() == 1 else weight
        if weight.shape != average.shape[:2]:
            raise InputError(f"ema_update_weight: expected shape {tuple(average.shape[:2])}, got {tuple(weight.shape)}")
        rate = (rate * weight).view(*weight.shape, *[1] * (average.dim() - 2)).to(average)
    average.lerp_(new.to(average), rate)
