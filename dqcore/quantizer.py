"""``DynamicQuantizer``: a vector-quantization layer whose code length follows the image (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqcore.codebook import EMA, Codebook, KMeans, Learning, RandomRestart, Uniform, reduce_statistics
from dqcore.distributed import from_first_process
from dqcore.errors import InputError
from dqcore.estimators import Cosine, Euclidean, Rotation, StraightThrough
from dqcore.metrics.coding import perplexity
from dqcore.nn.layouts import MAP, draw_vectors, layout_of, pyramid
from dqcore.ops import dynamic_lookup

__all__ = ["DynamicQuantizer", "Quantized"]

#: A code that no vector chose in this many training batches counts as unused.
USAGE_WINDOW = 100


class Quantized(NamedTuple):
    """What a quantizer returns.

    Attributes:
        map: ``(B, dim, H, W)`` in the input's dtype; a coarse code fills its block; gradients pass through it.
        codes: ``(B, H, W)`` int64 code map, -1 where masked.
        loss: Scalar float32, already weighted.
    """

    map: Tensor
    codes: Tensor
    loss: Tensor


class DynamicQuantizer(nn.Module):
    """Quantize each region at its own granularity: vector i becomes ``e_k`` with ``k = argmin_k ||z_i - e_k||^2``.

    The loss is ``(commitment + 1) sum_i ||z_i - e_k(i)||^2 / (B dim H W)``: each code counts once, however many cells
    it fills, and the mean runs over all cells. The ``commitment`` part trains the encoder. The other part trains the
    codebook (with :class:`Gradient <dqcore.codebook.Gradient>`) or has no gradient
    (with :class:`EMA <dqcore.codebook.EMA>`).

    Args:
        dim: Channels of the feature maps.
        codebook_size: K, the number of codes.
        num_granularities: Number of feature maps; 1 makes an ordinary VQ layer.
        commitment: Weight of the commitment term (beta).
        learning: ``EMA(decay=...)`` or ``Gradient()``.
        initialisation: ``Uniform()``, or ``KMeans()`` on the first training batch.
        restart: None, or ``RandomRestart()`` of codes that fall out of use.
        metric: ``Euclidean()`` or ``Cosine()``.
        estimator: ``StraightThrough()`` or ``Rotation()``.
        codebook_dim: Dimension of the codes, if other than ``dim``; one 1x1 projection leads to it, one back.
        channel_last: A single input has its channels last: ``(B, N, dim)`` or ``(B, H, W, dim)``.

    Under autocast, distances and codebook updates stay in float32. In training every forward pass updates the codebook
    once; where ``torch.distributed`` runs, from the statistics of all processes together.

    The defaults learn well within a few hundred steps (``benchmarks/bench_defaults.py``). The paper's settings, which
    the presets of the tokenizers use, are those of :meth:`paper`.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_granularities: int = 1,
        *,
        commitment: float = 0.25,
        learning: Learning = EMA(decay=0.8),
        initialisation: Uniform | KMeans = Uniform(),
        restart: RandomRestart | None = RandomRestart(),  # noqa: B008 - frozen
        metric: Euclidean | Cosine = Euclidean(),
        estimator: StraightThrough | Rotation = StraightThrough(),
        codebook_dim: int | None = None,
        channel_last: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"dim": dim, "codebook_size": codebook_size, "num_granularities": num_granularities}.items():
            if value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")
        self.dim, self.codebook_size, self.num_granularities = dim, codebook_size, num_granularities
        self.commitment, self.channel_last = commitment, channel_last
        self.initialisation, self.restart, self.metric, self.estimator = initialisation, restart, metric, estimator
        self.codebook: Codebook = learning.build(codebook_size, codebook_dim or dim)
        projected = codebook_dim is not None and codebook_dim != dim
        self.project_in = nn.Conv2d(dim, self.codebook.dim, 1) if projected else nn.Identity()
        self.project_out = nn.Conv2d(self.codebook.dim, dim, 1) if projected else nn.Identity()
        self.frozen = False
        self.initialised: Tensor
        self.register_buffer("initialised", torch.tensor(False))
        self._ready = False
        if not initialisation.needs_data:
            self._start(initialisation(None, codebook_size, self.codebook.dim))

    @classmethod
    def paper(cls, dim: int, codebook_size: int, num_granularities: int = 1, **changes: Any) -> DynamicQuantizer:
        """A quantizer with the settings of the paper, section 3.2: decay 0.99, and unused codes stay as they are.

        Args:
            dim: Channels of the feature maps.
            codebook_size: K, the number of codes.
            num_granularities: Number of feature maps.
            changes: Other arguments of the constructor, these settings among them.
        """
        settings: dict[str, Any] = {
            "commitment": 0.25,
            "learning": EMA(decay=0.99),
            "initialisation": Uniform(),
            "restart": None,
        }
        return cls(dim, codebook_size, num_granularities, **settings | changes)

    def forward(
        self, features: Tensor | Sequence[Tensor], grain: Tensor | None = None, mask: Tensor | None = None
    ) -> Quantized:
        """Quantize feature maps.

        Args:
            features: Maps coarse to fine, map g ``(B, dim, h * 2**g, w * 2**g)``; or one map on the finest grid,
                ``(B, dim, H, W)`` (with ``channel_last`` ``(B, N, dim)`` or ``(B, H, W, dim)``), whose coarse regions
                are averaged.
            grain: Granularity of each region, ``(B, h, w)`` int64; needed when ``num_granularities > 1``.
            mask: True for the regions to quantize, ``(B, h, w)`` bool (``(B, N)`` for sequences). The others cost
                nothing, get code -1 and vector 0, and are left out of loss and codebook updates.

        Returns:
            ``Quantized(map, codes, loss)``; the map has the layout of ``features``.

        Raises:
            ValueError: Shapes that do not fit, or a grain out of range.
        """
        maps, grain, mask, restore = self._arrange(features, grain, mask)
        maps = [self.metric(self.project_in(values), 1) for values in maps]
        if not self._ready:
            self._initialise(maps, grain, mask)
        learn = self.training and not self.frozen
        codes = self.metric(self.codebook.codes, 1)
        lookup = dynamic_lookup(maps, grain, codes.detach(), mask=mask, with_sums=learn)
        numel = self.dim * (lookup.codes.numel() if mask is None else (lookup.codes >= 0).sum().clamp_min(1))
        error = lookup.error.sum() / numel
        loss = self.commitment * error + error.detach()
        if mask is not None:
            grain = torch.where(mask, grain, -1)
        if learn and lookup.statistics is not None:
            pull = self.codebook.loss(codes, *lookup.statistics) / numel
            loss = loss + pull - pull.detach()
            self._learn(maps, grain, *lookup.statistics)
        quantized = self.project_out(self.estimator(maps, grain, lookup))
        return Quantized(restore(quantized), restore(lookup.codes), loss)

    def embed(self, codes: Tensor) -> Tensor:
        """The vectors of a code map, ``e_k``.

        Args:
            codes: ``(B, H, W)`` int64 in ``[0, K]``; K marks a hole, which gets the codebook's padding row.

        Returns:
            ``(B, dim, H, W)`` float32, what ``forward`` returned as ``map`` for these codes.
        """
        if codes.dim() != 3 or codes.dtype != torch.int64:
            raise InputError(f"codes: expected a (B, H, W) int64 code map, got {tuple(codes.shape)} {codes.dtype}")
        vectors = F.embedding(codes, self.metric(self.codebook.weight, 1))
        return self.project_out(vectors.permute(0, 3, 1, 2).contiguous())

    def initialise(self, features: Tensor | Sequence[Tensor], grain: Tensor | None = None) -> None:
        """Start a data-dependent codebook from these features, as the first forward pass in training does."""
        maps, grain, _, _ = self._arrange(features, grain, None)
        self._ready = False
        self._initialise([self.metric(self.project_in(values), 1) for values in maps], grain, None, force=True)

    def freeze(self, frozen: bool = True) -> DynamicQuantizer:
        """Stop, or resume, learning the codebook. The encoder's commitment loss stays as it is."""
        self.frozen = frozen
        return self

    @property
    def usage(self) -> float:
        """Share of codes that some vector chose in the last 100 training batches, in [0, 1]."""
        return float((self.codebook.idle < USAGE_WINDOW).float().mean())

    @property
    def perplexity(self) -> float:
        """:func:`dqcore.metrics.perplexity` of the moving averages of code frequencies, in [1, K]."""
        return perplexity(self.codebook.cluster_size)

    def extra_repr(self) -> str:
        """The sizes and strategies."""
        sizes = f"{self.dim}, {self.codebook_size}, num_granularities={self.num_granularities}"
        return f"{sizes}, metric={self.metric}, estimator={self.estimator}, restart={self.restart}"

    def _arrange(
        self, features: Tensor | Sequence[Tensor], grain: Tensor | None, mask: Tensor | None
    ) -> tuple[list[Tensor], Tensor, Tensor | None, Callable[[Tensor], Tensor]]:
        """Maps coarse to fine, grain, mask, and the function that brings a result into the input's layout."""
        layout = MAP
        if isinstance(features, Tensor):
            layout = layout_of(features.dim(), self.channel_last)
            if features.dim() != layout.dim or features.shape[layout.channel] != self.dim:
                raise InputError(f"features: expected {layout.shape} with dim={self.dim}, got {tuple(features.shape)}")
            finest, mask = layout.to_map(features), layout.mask(mask)
            if grain is None and self.num_granularities == 1:
                grain = torch.zeros(finest.shape[0], *finest.shape[2:], dtype=torch.int64, device=finest.device)
            maps = pyramid(finest, self.num_granularities)
        else:
            maps = list(features)
        if grain is None:
            raise InputError(f"grain: expected a grain map, as there are {self.num_granularities} granularities")
        if len(maps) != self.num_granularities or maps[0].dim() != 4 or maps[0].shape[1] != self.dim:
            shapes = [tuple(values.shape) for values in maps]
            raise InputError(f"features: expected {self.num_granularities} maps (B, {self.dim}, ...), got {shapes}")
        return maps, grain, mask, layout.restore

    def _initialise(self, maps: Sequence[Tensor], grain: Tensor, mask: Tensor | None, force: bool = False) -> None:
        if bool(self.initialised) and not force:
            self._ready = True
        elif self.training or force:
            with torch.no_grad():
                where = grain if mask is None else torch.where(mask, grain, -1)
                cells = maps[-1].shape[0] * maps[-1][0, 0].numel()
                vectors = draw_vectors(maps, where, max(self.codebook_size, min(64 * self.codebook_size, cells)))
                self._start(from_first_process(self.initialisation(vectors, self.codebook_size, self.codebook.dim)))

    @torch.no_grad()
    def _start(self, codes: Tensor) -> None:
        everything = torch.ones(self.codebook_size, dtype=torch.bool, device=codes.device)
        self.codebook.replace(codes, everything)
        self.initialised.fill_(True)
        self._ready = True

    @torch.no_grad()
    def _learn(self, maps: Sequence[Tensor], grain: Tensor, counts: Tensor, sums: Tensor) -> None:
        self.codebook.update(*reduce_statistics(counts.float(), sums.float()))
        if self.restart is not None:
            self.restart(self.codebook, from_first_process(draw_vectors(maps, grain, self.codebook_size).float()))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = bool(self.initialised)
