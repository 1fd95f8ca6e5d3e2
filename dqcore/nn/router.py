"""The routers of the paper (section 3.2) and its ablations: by features, by entropy, at random."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqcore.errors import InputError
from dqcore.nn.allocation import exact_share, target_shares
from dqcore.nn.blocks import group_norm
from dqcore.nn.routing import Router, Routing
from dqcore.ops.autocast import without_autocast
from dqcore.ops.patch_entropy import patch_entropy
from dqcore.ops.registry import is_traced

__all__ = ["EntropyRouter", "FeatureRouter", "Gate", "RandomRouter", "entropy_thresholds"]

Gate = Literal["linear", "silu", "relu"]


class FeatureRouter(Router):
    """``grain = argmax_g gate([norm_0(z_0), pool(norm_1(z_1)), ...])_g`` for each region (paper, section 3.2).

    In training, Gumbel noise is added to the logits before the argmax, and the gate has the gradient of their softmax
    (straight-through). In evaluation there is no noise, and ties go to the coarser granularity.

    Args:
        dim: Channels of each map.
        num_granularities: Number of maps.
        gate: ``"silu"`` or ``"relu"`` for two layers with this activation, ``"linear"`` for one layer.
        groups: Groups of each map's normalization; 0 for no normalization.
        temperature: Temperature of the softmax, above 0.
    """

    def __init__(
        self, dim: int, num_granularities: int, gate: Gate = "silu", groups: int = 32, temperature: float = 1.0
    ) -> None:
        super().__init__()
        width = dim * num_granularities
        self.temperature = temperature
        self.norms = nn.ModuleList(
            group_norm(dim, groups) if groups else nn.Identity() for _ in range(num_granularities)
        )
        last = nn.Linear(width, num_granularities)
        activation = {"linear": None, "silu": nn.SiLU(), "relu": nn.ReLU()}[gate]
        self.gate = nn.Sequential(nn.Linear(width, width), activation, last) if activation else nn.Sequential(last)

    @without_autocast
    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Routing:
        """Route by the maps; the arithmetic stays in float32 under autocast."""
        dtype = next(self.gate.parameters()).dtype
        pooled = [
            F.avg_pool2d(norm(values.to(dtype)), 2**g)
            for g, (norm, values) in enumerate(zip(self.norms, maps, strict=True))
        ]
        logits = self.gate(torch.cat(pooled, 1).permute(0, 2, 3, 1))
        noisy = logits - torch.empty_like(logits).exponential_().log() if self.training else logits
        grain = noisy.argmax(-1)
        gate = F.one_hot(grain, logits.shape[-1]).to(logits.dtype)
        if self.training:
            soft = (noisy / self.temperature).softmax(-1)
            gate = gate + (soft - soft.detach())
        return Routing(grain, gate=gate.permute(0, 3, 1, 2), gate_logits=logits)

    def refinement_scores(self, routing: Routing) -> Tensor:
        """Logit gained for each code that the refinement from g to g + 1 adds, float64, ``(B, G - 1, h, w)``.

        These are slopes of the upper concave envelope of the logits over the number of codes. So they never rise with
        g, and the granularity that the router chose itself is the number of positive scores.
        """
        assert routing.gate_logits is not None
        logits = routing.gate_logits.detach().double().unbind(-1)
        slopes = []
        for g in range(len(logits) - 1):
            best = [
                torch.stack([(logits[b] - logits[a]) / (4**b - 4**a) for b in range(g + 1, len(logits))]).amax(0)
                for a in range(g + 1)
            ]
            slopes.append(torch.stack(best).amin(0))
        return torch.stack(slopes, 1)


class EntropyRouter(Router):
    """``grain = number of thresholds below the region's entropy``: no parameters, no gradient (paper's repository).

    Without thresholds, before :meth:`fit` has seen images or a state dict was loaded, the target shares hold in each
    image by itself: its regions of highest entropy get the finer granularities.

    Args:
        ratio: Share of regions of each granularity above the coarsest, coarse to fine; a number for two granularities.
        patch_size: Height and width of a region in pixels.
        bins: Range of gray values that the histogram covers; ``(0.0, 1.0)`` for the checkpoint released by the authors.

    Attributes:
        thresholds: Nats, rising, float32, ``(G - 1,)``; NaN until they are fitted.
    """

    thresholds: Tensor

    def __init__(
        self, ratio: float | Sequence[float], patch_size: int, bins: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        super().__init__()
        self.ratio, self.patch_size, self.bins = target_shares("ratio", ratio), patch_size, bins
        self.register_buffer("thresholds", torch.full((len(self.ratio),), torch.nan, dtype=torch.float32))
        self._fitted, self._asked = False, self.thresholds._version

    @property
    def fitted(self) -> bool:
        """Whether there are thresholds.

        While it knows of none the host asks once after each time that they were written: wrappers do so in place.
        """
        values = self.thresholds
        unknown = not (self._fitted or is_traced() or values.is_meta or values.is_inference())
        if unknown and values._version != self._asked:
            self._fitted, self._asked = not bool(values.isnan().any()), values._version
        return self._fitted

    def entropy(self, images: Tensor) -> Tensor:
        """Entropy of each region of ``images (B, 3, H, W)``, nats, float32, ``(B, h, w)``."""
        return patch_entropy(images.detach().float(), self.patch_size, bins=self.bins)

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Routing:
        """Route by the images alone."""
        entropy = self.entropy(images)
        if self.fitted:
            grain = (entropy[..., None] > self.thresholds).sum(-1)
        else:
            grain = exact_share(self._above_thresholds(entropy), self.ratio)
        return Routing(grain, entropy=entropy)

    def refinement_scores(self, routing: Routing) -> Tensor:
        """How far the entropy lies above each threshold, float64, ``(B, G - 1, h, w)``."""
        assert routing.entropy is not None
        return self._above_thresholds(routing.entropy)

    @torch.no_grad()
    def fit(self, images: Tensor | Iterable[Tensor]) -> Tensor:
        """Set the thresholds so that these images get the target shares on average.

        Args:
            images: A batch ``(B, 3, H, W)`` in [-1, 1], or an iterable of batches (of any sizes).

        Returns:
            The thresholds, nats, ``(G - 1,)``. Number g is the quantile of the entropies above which the share of
            regions lies that are to be finer than granularity g.

        Raises:
            InputError: There is no image, or one has a NaN.
        """
        batches = [images] if isinstance(images, Tensor) else images
        entropies = [self.entropy(batch.to(self.thresholds.device)).flatten() for batch in batches]
        if not any(map(len, entropies)):
            raise InputError("images: expected at least one batch to fit the thresholds on, got none")
        found = torch.cat(entropies)
        if bool(found.isnan().any()):
            raise InputError("images: expected finite values to fit the thresholds on, got NaN")
        return self.set_thresholds(entropy_thresholds(found, self.ratio))

    def set_thresholds(self, thresholds: Sequence[float]) -> Tensor:
        """Set and return the thresholds: nats, rising, one for each granularity above the coarsest."""
        values = [float(value) for value in thresholds]
        rise = all(low <= high for low, high in zip(values, [*values[1:], math.inf], strict=True))  # NaN does not
        if len(values) != len(self.thresholds) or not rise:
            raise InputError(f"thresholds: expected {len(self.thresholds)} rising numbers, got {values}")
        self.thresholds.copy_(torch.tensor(values, dtype=self.thresholds.dtype))
        self._fitted = True
        return self.thresholds

    def _above_thresholds(self, entropy: Tensor) -> Tensor:
        thresholds = self.thresholds if self.fitted else torch.zeros_like(self.thresholds)
        return entropy.double()[:, None] - thresholds.double()[:, None, None]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._fitted = not bool(self.thresholds.isnan().any())


class RandomRouter(Router):
    """Random regions in exactly the target shares: the paper's ablation of routing.

    In training the regions are drawn anew at each step. In evaluation all images of a grid size have the same regions.

    Args:
        ratio: Share of regions of each granularity above the coarsest, coarse to fine; a number for two granularities.
    """

    def __init__(self, ratio: float | Sequence[float]) -> None:
        super().__init__()
        self.ratio = target_shares("ratio", ratio)

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Routing:
        """Route at random; of the maps only the size of the coarsest counts."""
        return Routing(exact_share(self._draw(maps[0], self.training), self.ratio))

    def refinement_scores(self, routing: Routing) -> Tensor:
        """The fixed pattern of evaluation, float32, ``(B, G - 1, h, w)``."""
        return self._draw(routing.grain[:, None], False)

    def _draw(self, like: Tensor, fresh: bool) -> Tensor:
        batch, _, height, width = like.shape
        if fresh:
            scores = torch.rand(batch, 1, height, width, dtype=torch.float32, device=like.device)
        else:
            generator = torch.Generator().manual_seed(0)
            scores = torch.rand(1, 1, height, width, generator=generator, dtype=torch.float32, device="cpu")
            scores = scores.to(like.device)
        return scores.expand(batch, len(self.ratio), height, width)


def entropy_thresholds(entropies: Tensor, ratio: Sequence[float]) -> list[float]:
    """Thresholds at which regions get these shares.

    Args:
        entropies: Of all regions, nats, ``(N,)``.
        ratio: Share of regions of each granularity above the coarsest, coarse to fine.

    Returns:
        Nats, rising, one for each of ``ratio``; below all entropies where all regions are to be finer.
    """
    values = entropies.double().sort().values
    shares = [sum(ratio[g:]) for g in range(len(ratio))]
    return [float(values[0]) - 1 if share >= 1 - 1e-9 else _quantile(values, 1 - share) for share in shares]


def _quantile(ordered: Tensor, share: float) -> float:
    """Quantile of sorted values by linear interpolation; unlike ``torch.quantile`` it takes any number of values."""
    index = share * (len(ordered) - 1)
    low = int(index)
    high = min(low + 1, len(ordered) - 1)
    return float(torch.lerp(ordered[low], ordered[high], index - low))
