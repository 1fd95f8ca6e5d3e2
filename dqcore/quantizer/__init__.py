"""``DynamicQuantizer``: a vector-quantization layer whose code length follows the image (paper section 3.2).

Its arguments are here. How a pass is computed is in ``lookup_layer``, what becomes of one that activation checkpointing
computes again in ``recompute``, and how the codebook learns in :mod:`dqcore.codebook`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore.codebook import EMA, PAPER, KMeans, Learning, RandomRestart, Uniform
from dqcore.errors import whole_at_least, whole_given
from dqcore.estimators import Cosine, Euclidean, Rotation, StraightThrough
from dqcore.nn.arranged import arrange, check_code_map
from dqcore.nn.layouts import layout_of
from dqcore.nn.quantized import Quantized
from dqcore.nn.vectors import project
from dqcore.quantizer.checks import check_settings
from dqcore.quantizer.lookup_layer import LookupLayer

__all__ = ["DynamicQuantizer", "Quantized"]


class DynamicQuantizer(LookupLayer):
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
        whole_given(1, dim=dim, codebook_size=codebook_size, num_granularities=num_granularities)
        whole_at_least(1, codebook_dim=codebook_dim)
        commitment = check_settings(nonfinite, commitment, learning, initialisation, restart, metric, estimator)
        super().__init__(
            learning.build(codebook_size, codebook_dim or dim),
            initialisation,
            restart,
            dim=dim,
            commitment=commitment,
            metric=metric,
            estimator=estimator,
            nonfinite=nonfinite,
            eval_loss=eval_loss,
        )
        self.codebook_size, self.num_granularities, self.channel_last = codebook_size, num_granularities, channel_last

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
            ``Quantized(map, codes, loss)``; the map has the layout, dtype and memory format of ``features``. The
            backward pass reads both: what writes into one of them before, as ``ReLU(inplace=True)``, needs a clone.

        Raises:
            InputError: Shapes that do not fit, a grain or length out of range, vectors that are not finite,
                a codebook that waits for its first training batch, or one that is to learn within ``torch.func``.
            TypeError: An argument is no tensor, or has the wrong dtype.
        """
        given = arrange(features, grain, mask, lengths, self)
        vectors = self._vectors(given)
        codes, with_sums, learns = self._codes_for(given, vectors, learn)
        codes = self.metric(codes, 1)
        step = self._step_at_once(given, vectors) if learns else None
        if step is None:
            step = self._step_by_ops(given, vectors, codes, with_sums, learns)
        return Quantized(*given.restore(step.quantized, step.codes), step.loss, step.commitment, step.codebook)

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
            vectors = self._vectors(given)
            self._initialise(vectors.maps, given.selected, vectors.bad_cells, force=True)

    def extra_repr(self) -> str:
        """The sizes and strategies."""
        sizes = f"{self.dim}, {self.codebook_size}, num_granularities={self.num_granularities}"
        return f"{sizes}, metric={self.metric}, estimator={self.estimator}, restart={self.restart}"
