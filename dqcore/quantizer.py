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
from dqcore.ops import dynamic_lookup
from dqcore.ops.dynamic_lookup import cells_per_code, merge_maps

__all__ = ["DynamicQuantizer", "Quantized"]

#: Training batches after which a code that was not chosen counts as unused.
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
    """Quantize each region at its own granularity, ``e_k`` with ``k = argmin_k ||z_i - e_k||^2`` for every vector i.

    The loss is ``(commitment + 1) sum_i ||z_i - e_k(i)||^2 / (B dim H W)``: each code counts once, however many cells
    it fills, and the mean runs over all cells. The encoder feels the ``commitment`` part; the rest trains the codebook
    (:class:`Gradient <dqcore.codebook.Gradient>`) or is a constant (:class:`EMA <dqcore.codebook.EMA>`).

    Args:
        dim: Channels of the feature maps.
        codebook_size: K, the number of codes.
        num_granularities: Number of feature maps; 1 makes an ordinary VQ layer.
        commitment: Weight of the commitment term (beta).
        learning: ``EMA()`` or ``Gradient()``.
        initialisation: ``Uniform()``, or ``KMeans()`` on the first training batch.
        restart: None, or ``RandomRestart()`` of codes that fall out of use.
        metric: ``Euclidean()`` or ``Cosine()``.
        estimator: ``StraightThrough()`` or ``Rotation()``.
        codebook_dim: Dimension of the codes, if lower than ``dim``; 1x1 projections lead there and back.
        channel_last: Vectors lie along the last dimension: ``(B, N, dim)`` or ``(B, H, W, dim)``.

    Under autocast, distances and codebook updates stay in float32. In training every forward updates the codebook once,
    on the sum of all processes' statistics when ``torch.distributed`` runs.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_granularities: int = 1,
        *,
        commitment: float = 0.25,
        learning: Learning = EMA(),
        initialisation: Uniform | KMeans = Uniform(),
        restart: RandomRestart | None = None,
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

    def forward(
        self, features: Tensor | Sequence[Tensor], grain: Tensor | None = None, mask: Tensor | None = None
    ) -> Quantized:
        """Quantize feature maps.

        Args:
            features: Maps coarse to fine, map g ``(B, dim, h * 2**g, w * 2**g)``; or one map on the finest grid,
                ``(B, dim, H, W)`` (with ``channel_last`` ``(B, N, dim)`` or ``(B, H, W, dim)``), whose coarse regions
                are averaged.
            grain: Granularity of each region, ``(B, h, w)`` int64; needed when ``num_granularities > 1``.
            mask: Regions to quantize, ``(B, h, w)`` bool (``(B, N)`` for sequences); the others cost nothing, get code
                -1 and vector 0, and count nowhere.

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
            codes: ``(B, H, W)`` int64 in ``[0, K]``; code K is the padding row, a hole.

        Returns:
            ``(B, dim, H, W)`` float32, what ``forward`` returned as ``map`` for these codes.
        """
        if codes.dim() != 3 or codes.dtype != torch.int64:
            raise InputError(f"codes: expected a (B, H, W) int64 code map, got {tuple(codes.shape)} {codes.dtype}")
        vectors = F.embedding(codes, self.metric(self.codebook.weight, 1))
        return self.project_out(vectors.permute(0, 3, 1, 2).contiguous())

    def initialise(self, features: Tensor | Sequence[Tensor], grain: Tensor | None = None) -> None:
        """Start a data-dependent codebook from these features, as the first training forward would; see ``forward``."""
        maps, grain, _, _ = self._arrange(features, grain, None)
        self._ready = False
        self._initialise([self.metric(self.project_in(values), 1) for values in maps], grain, None, force=True)

    def freeze(self, frozen: bool = True) -> DynamicQuantizer:
        """Stop (or resume) learning the codebook; the encoder's commitment loss stays."""
        self.frozen = frozen
        return self

    @property
    def usage(self) -> float:
        """Share of codes chosen in the last 100 training batches, in [0, 1]."""
        return float((self.codebook.idle < USAGE_WINDOW).float().mean())

    @property
    def perplexity(self) -> float:
        """``exp(H(p))`` of the moving code frequencies, in [1, K]: how many codes are in even use."""
        share = self.codebook.cluster_size / self.codebook.cluster_size.sum().clamp_min(1e-12)
        return float(torch.special.entr(share).sum().exp())

    def extra_repr(self) -> str:
        """The sizes and strategies."""
        sizes = f"{self.dim}, {self.codebook_size}, num_granularities={self.num_granularities}"
        return f"{sizes}, metric={self.metric}, estimator={self.estimator}, restart={self.restart}"

    def _arrange(
        self, features: Tensor | Sequence[Tensor], grain: Tensor | None, mask: Tensor | None
    ) -> tuple[list[Tensor], Tensor, Tensor | None, Callable[[Tensor], Tensor]]:
        """Maps coarse to fine, grain, mask, and how to bring a result into the input's layout."""
        layout = _MAP
        if isinstance(features, Tensor):
            if self.channel_last:
                layout = _SEQUENCE if features.dim() == 3 else _CHANNEL_LAST
            if features.dim() != layout.dim or features.shape[layout.channel] != self.dim:
                raise InputError(f"features: expected {layout.shape} with dim={self.dim}, got {tuple(features.shape)}")
            features, mask = layout.to_map(features), layout.mask(mask)
            if grain is None and self.num_granularities == 1:
                grain = torch.zeros(features.shape[0], *features.shape[2:], dtype=torch.int64, device=features.device)
            features = _pyramid(features, self.num_granularities)
        if grain is None:
            raise InputError(f"grain: expected a grain map, as there are {self.num_granularities} granularities")
        if len(features) != self.num_granularities or features[0].dim() != 4 or features[0].shape[1] != self.dim:
            shapes = [tuple(values.shape) for values in features]
            raise InputError(f"features: expected {self.num_granularities} maps (B, {self.dim}, ...), got {shapes}")
        return list(features), grain, mask, layout.restore

    def _initialise(self, maps: Sequence[Tensor], grain: Tensor, mask: Tensor | None, force: bool = False) -> None:
        if bool(self.initialised) and not force:
            self._ready = True
        elif self.training or force:
            with torch.no_grad():
                where = grain if mask is None else torch.where(mask, grain, -1)
                number = max(
                    self.codebook_size, min(64 * self.codebook_size, maps[-1].shape[0] * maps[-1][0, 0].numel())
                )
                tokens = _sample(maps, where, number)
                self._start(from_first_process(self.initialisation(tokens, self.codebook_size, self.codebook.dim)))

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
            self.restart(self.codebook, from_first_process(_sample(maps, grain, self.codebook_size).float()))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = bool(self.initialised)


class _Layout(NamedTuple):
    """Where the channels of a single input lie."""

    shape: str
    dim: int
    channel: int

    def to_map(self, x: Tensor) -> Tensor:
        return x if self.channel == 1 else (x[:, None] if self.dim == 3 else x).permute(0, 3, 1, 2)

    def mask(self, mask: Tensor | None) -> Tensor | None:
        return mask[:, None] if mask is not None and self.dim == 3 and mask.dim() == 2 else mask

    def restore(self, x: Tensor) -> Tensor:
        if self.channel == 1:
            return x
        x = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        return x[:, 0] if self.dim == 3 else x


_MAP = _Layout("(B, dim, H, W)", 4, 1)
_CHANNEL_LAST = _Layout("(B, H, W, dim)", 4, 3)
_SEQUENCE = _Layout("(B, N, dim)", 3, 2)


def _pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """Block means of a map on the finest grid, coarse to fine."""
    maps = [x]
    for _ in range(levels - 1):
        maps.insert(0, F.avg_pool2d(maps[0], 2))
    return maps


def _sample(maps: Sequence[Tensor], grain: Tensor, number: int) -> Tensor:
    """``(number, D)`` vectors drawn at random, with replacement, from those that the grain map selects."""
    cells = cells_per_code(grain, len(maps)).flatten()
    weight = torch.where(cells > 0, 1 / cells.clamp_min(1), 0.0).cumsum(0, dtype=torch.float64)
    draw = torch.rand(number, device=grain.device, dtype=torch.float64) * weight[-1]
    cell = torch.searchsorted(weight, draw, right=True).clamp_max(len(weight) - 1)
    merged = merge_maps(maps, grain) if len(maps) > 1 else maps[0]
    image, inside = cell // merged[0, 0].numel(), cell % merged[0, 0].numel()
    return merged[image, :, inside // merged.shape[3], inside % merged.shape[3]]
