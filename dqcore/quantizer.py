"""``DynamicQuantizer``: a vector-quantization layer whose code length follows the image (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqcore import backends
from dqcore.codebook import EMA, PAPER, KMeans, Learning, RandomRestart, Uniform, fused
from dqcore.codebook.checks import check_settings
from dqcore.codebook.layer import CodebookLayer
from dqcore.codebook.learning import pull
from dqcore.codebook.recompute import substitute
from dqcore.errors import whole_at_least
from dqcore.estimators import Cosine, Euclidean, Rotation, StraightThrough
from dqcore.nn.arranged import Arranged, arrange, check_code_map
from dqcore.nn.layouts import layout_of
from dqcore.nn.lookup import look_up, loss_of
from dqcore.nn.quantized import Quantized
from dqcore.nn.vectors import finite_vectors, marked_vectors, project
from dqcore.ops import Lookup
from dqcore.ops.lookup_step import LookupStep
from dqcore.ops.registry import in_backward, is_traced

__all__ = ["DynamicQuantizer", "Quantized"]


class DynamicQuantizer(CodebookLayer):
    """Quantize each region at its own granularity: vector i becomes ``e_k`` with ``k = argmin_k ||z_i - e_k||^2``.

    The paper's loss is ``||sg[z] - e||^2 + beta ||z - sg[e]||^2``, the squared norms of whole maps. Here both parts are
    means, ``sum_i ||z_i - e_k(i)||^2 / (B D H W)`` with D the dimension of the codes, so that neither the size of the
    image nor ``codebook_dim`` changes their weight: the loss is ``1 + beta`` times the mean. Each code counts once,
    however many cells it fills, and H W are all cells of the finest grid. The part with ``beta`` (``commitment``)
    trains the encoder. The other one trains the codebook (with :class:`Gradient <dqcore.codebook.Gradient>`) or has no
    gradient (with :class:`EMA <dqcore.codebook.EMA>`); ``Quantized`` gives both apart.

    Args:
        dim: Channels of the feature maps.
        codebook_size: K, the number of codes.
        num_granularities: Number of feature maps; 1 makes an ordinary VQ layer.
        commitment: Weight of the commitment term (beta), 0 or more.
        learning: ``EMA(decay=...)`` or ``Gradient()``.
        initialisation: ``Uniform()``, or ``KMeans()`` on the first training batch.
        restart: None, or ``RandomRestart()`` of codes that fall out of use.
        metric: ``Euclidean()`` or ``Cosine()``.
        estimator: ``StraightThrough()`` or ``Rotation()``.
        codebook_dim: Dimension of the codes, if other than ``dim``; one 1x1 projection leads to it, one back.
        channel_last: A single input has its channels last: ``(B, N, dim)`` or ``(B, H, W, dim)``.
        nonfinite: What happens to a vector with a NaN or an infinity. ``"raise"``: an ``InputError``; a GPU's host then
            waits for each batch. ``"mask"``: code -1, quantized vector and gradient 0, no share in loss and codebook.
            None: raise on a CPU, mask on a GPU. A compiled or exported graph always masks.
        eval_loss: False makes the loss 0 in evaluation.

    Under autocast and after ``.half()`` or ``.to(bfloat16)``, distances, codebook and its updates stay in float32. In
    training every forward pass updates the codebook once; where ``torch.distributed`` runs, from the statistics of all
    processes together. A pass that activation checkpointing computes again (inside the backward pass) looks up in the
    codes of the first one and learns nothing. A compiled layer cannot see that: compile the checkpoint with it.
    The defaults are those of ``benchmarks/bench_defaults.py``; presets have the paper's settings, :meth:`paper`.
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
        nonfinite: Literal["raise", "mask"] | None = None,
        eval_loss: bool = True,
    ) -> None:
        whole_at_least(1, dim=dim, codebook_size=codebook_size, num_granularities=num_granularities)
        whole_at_least(1, codebook_dim=codebook_dim)
        commitment = check_settings(nonfinite, commitment, learning, initialisation, restart, metric, estimator)
        super().__init__(learning.build(codebook_size, codebook_dim or dim), initialisation, restart)
        self.dim, self.codebook_size, self.num_granularities = dim, codebook_size, num_granularities
        self.commitment, self.channel_last, self.portable = commitment, channel_last, False
        self.nonfinite, self.eval_loss, self.metric, self.estimator = nonfinite, eval_loss, metric, estimator
        self._projected = codebook_dim is not None and codebook_dim != dim
        self.project_in = nn.Conv2d(dim, self.codebook.dim, 1) if self._projected else nn.Identity()
        self.project_out = nn.Conv2d(self.codebook.dim, dim, 1) if self._projected else nn.Identity()
        #: Neither metric nor estimator does anything to vectors and gradients; and, further, there is no projection.
        self._direct = type(metric) is Euclidean and type(estimator) is StraightThrough
        self._only_looks_up = self._direct and not self._projected

    @classmethod
    def paper(cls, dim: int, codebook_size: int, num_granularities: int = 1, **changes: Any) -> DynamicQuantizer:
        """No restart (supplement, section 1), decay 0.99 (authors' code); ``changes`` are arguments that differ."""
        return cls(dim, codebook_size, num_granularities, **{**PAPER, **changes})

    def forward(
        self,
        features: Tensor | Sequence[Tensor],
        grain: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        learn: bool = True,
    ) -> Quantized:
        """Quantize feature maps.

        Args:
            features: Maps coarse to fine, map g ``(B, dim, h * 2**g, w * 2**g)``; or one map on the finest grid,
                ``(B, dim, H, W)``, whose coarse regions are averaged. With one granularity the grid may have any
                number of dimensions: ``(B, dim)``, ``(B, dim, N)``, ``(B, dim, T, H, W)``. With ``channel_last``
                ``(B, *grid, dim)``.
            grain: Granularity of each region, ``(B, h, w)`` int64; needed when ``num_granularities > 1``.
            mask: True for the regions to quantize, ``(B, h, w)`` bool (with one granularity ``(B, *grid)``). The others
                cost nothing, get code -1 and vector 0, and are left out of loss and codebook updates.
            lengths: For sequences: how many vectors of each to quantize, ``(B,)`` integers in [0, N]; CPUs check them.
            learn: False leaves the codebook as it is, in training too.

        Returns:
            ``Quantized(map, codes, loss)``; the map has the layout, dtype and memory format of ``features``.

        Raises:
            InputError: Shapes that do not fit, a grain or length out of range, vectors that are not finite,
                a codebook that waits for its first training batch, or one that is to learn within ``torch.func``.
            TypeError: An argument is no tensor, or has the wrong dtype.
        """
        given = arrange(features, grain, mask, lengths, self)
        maps, bad_cells, dtype = self._vectors(given)
        codes, learn, is_repeat = self._codes_for(maps, given, bad_cells, learn)
        if learn and not is_repeat and bad_cells is None and (step := self._whole_step(maps, given)) is not None:
            return Quantized(*given.restore(step.quantized, step.codes), step.loss, step.commitment, step.codebook)
        lookup = look_up(maps, given, codes.detach(), bad_cells, with_sums=learn, portable=self._torch_only)
        losses = self._losses(lookup, codes)
        if lookup.statistics is not None and not is_repeat:
            self._learn(maps, given.grain, lookup)
        if self._only_looks_up and bad_cells is None:
            return Quantized(*given.restore(lookup.quantized, lookup.codes), *losses)
        quantized = project(self.project_out, self.estimator(maps, given.selected, lookup).to(dtype))
        if bad_cells is not None or (self._projected and (given.mask is not None or self._lookup_skips_bad(given))):
            quantized = quantized.masked_fill(lookup.codes[:, None] < 0, 0)
        return Quantized(*given.restore(quantized, lookup.codes), *losses)

    if TYPE_CHECKING:  # nn.Module's own __call__ returns Any

        def __call__(  # noqa: D102
            self,
            features: Tensor | Sequence[Tensor],
            grain: Tensor | None = None,
            mask: Tensor | None = None,
            *,
            lengths: Tensor | None = None,
            learn: bool = True,
        ) -> Quantized: ...

    def embed(self, codes: Tensor) -> Tensor:
        """The vectors of a code map: what ``forward`` returned as ``map`` for its ``codes``.

        Args:
            codes: ``(B, *grid)`` of any integer dtype, values in ``[-1, K]``. -1, as ``forward`` returns it where a
                region is masked, gets vector 0; K marks a hole in a partial code map, which gets the padding row.

        Returns:
            ``(B, dim, *grid)``, with ``channel_last`` ``(B, *grid, dim)``; in the dtype that ``.to(dtype)`` gave the
            layer, which is float32 at first. Equal to ``map`` value for value; up to rounding with a projection.

        Raises:
            InputError: Another dtype, or on the CPU a value out of range; or the codebook waits for its first batch.
        """
        check_code_map(codes, self)
        self._check_started()
        layout = layout_of(codes.dim() + 1, self.channel_last)
        grid = layout.to_grid(codes).long()
        vectors = F.embedding(grid.clamp_min(0), self.metric(self.codebook.rows, 1)).to(self._dtype)
        quantized = project(self.project_out, vectors.permute(0, 3, 1, 2).contiguous())
        return layout.restore(quantized.masked_fill(grid[:, None] < 0, 0), codes.shape[1:-1])

    def initialise(self, features: Tensor | Sequence[Tensor], grain: Tensor | None = None) -> None:
        """Start a data-dependent codebook from these features, as the first forward pass in training does."""
        with torch.no_grad():
            given = arrange(features, grain, None, None, self)
            maps, bad_cells, _ = self._vectors(given)
            self._initialise(maps, given.selected, bad_cells, force=True)

    def extra_repr(self) -> str:
        """The sizes and strategies."""
        sizes = f"{self.dim}, {self.codebook_size}, num_granularities={self.num_granularities}"
        return f"{sizes}, metric={self.metric}, estimator={self.estimator}, restart={self.restart}"

    @property
    def _torch_only(self) -> bool:
        """Whether to compute with PyTorch's own operations: ``torch.func`` transforms do not know our ops."""
        return self.portable or torch._C._are_functorch_transforms_active()

    def _raises_if_bad(self, given: Arranged) -> bool:
        """Whether a bad vector, one with a NaN or an infinity, is an error."""
        default = "raise" if given.maps[-1].device.type == "cpu" else "mask"
        return (self.nonfinite or default) == "raise" and not is_traced()

    def _lookup_skips_bad(self, given: Arranged) -> bool:
        """Whether the lookup itself gives bad vectors code -1, so that they need not be found before."""
        quiet = self._direct and self._ready and not self.portable and not self._raises_if_bad(given)
        return quiet and (self._only_looks_up or (backends.route(given.maps[-1].device) == "gpu" and not is_traced()))

    def _vectors(self, given: Arranged) -> tuple[list[Tensor], Tensor | None, torch.dtype]:
        """The maps to look up; their cells ``(B, H, W)`` with bad vectors, or None; the dtype of the projected maps."""
        if self._lookup_skips_bad(given):
            maps = list(given.maps) if self._only_looks_up else marked_vectors(given.maps, self.project_in)
            return maps, None, maps[-1].dtype
        return finite_vectors(given.maps, given.selected, self.project_in, self.metric, self._raises_if_bad(given))

    def _codes_for(
        self, maps: list[Tensor], given: Arranged, bad_cells: Tensor | None, learn: bool
    ) -> tuple[Tensor, bool, bool]:
        """The codes to look up in, started if need be; whether to learn; whether a checkpoint repeats a pass."""
        learn = self._may_learn(learn)
        if in_backward() and (past := self._first_passes.find(maps)) is not None:
            codes = substitute(self.codebook.codes, past.codes)
            return self.metric(codes, 1), past.learn and not self.frozen, True
        if self._apart and learn:
            self._agree()
        if not self._ready:
            self._initialise(maps, given.selected, bad_cells, learn=learn)
        learn, codes = learn and not self.frozen, self.codebook.codes
        if self.training:
            self._first_passes.keep(maps, codes, learn)
        if codes.requires_grad and self.restart is not None:
            codes = codes.clone()  # a restart writes to the codes before the backward pass
        return self.metric(codes, 1), learn, False

    def _whole_step(self, maps: list[Tensor], given: Arranged) -> LookupStep | None:
        """Lookup, loss and update by one call, which costs the host less; None where something comes between them."""
        if given.mask is not None or self.portable or not (self._only_looks_up and self._learns_at_once):
            return None
        return fused.step(self.codebook, self.restart, maps, given.grain, self.commitment)

    def _losses(self, lookup: Lookup, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, its commitment part and its codebook part."""
        error, dim = lookup.error, self.codebook.dim
        if not (self.training or self.eval_loss):
            return error.new_zeros(()), error.new_zeros(()), error.new_zeros(())
        loss, commitment, rest = loss_of(lookup, dim, self.commitment, portable=self._torch_only)
        if codes.requires_grad and lookup.statistics is not None:
            rest = rest + pull(self.codebook, codes, lookup)
            loss = commitment + rest
        return loss, commitment, rest
