"""Routers: which granularity each region of an image gets (paper, section 3.2).

A router is called as ``router(images, maps)`` with images ``(B, 3, H, W)`` and the encoder's maps coarse to fine, and
returns :class:`Routing`. ``router.step_scores(routing)`` ranks the regions for callers who set the number of codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqcore.errors import InputError
from dqcore.nn.allocation import allocate, counts_for_ratio, target_shares
from dqcore.nn.blocks import group_norm
from dqcore.ops.patch_entropy import patch_entropy

__all__ = ["EntropyRouter", "FeatureRouter", "Gate", "RandomRouter", "Routing"]

Gate = Literal["linear", "silu", "relu"]


class Routing(NamedTuple):
    """What a router decided.

    Attributes:
        grain: Granularity of each region, int64, ``(B, h, w)``.
        gate: For learned routers, one-hot of ``grain`` over axis 1, ``(B, G, h, w)``; in training its gradient is that
            of the soft probabilities.
        gate_logits: For learned routers, what the gate saw, without noise, float32, ``(B, h, w, G)``.
        entropy: For entropy routers, nats, float32, ``(B, h, w)``.
    """

    grain: Tensor
    gate: Tensor | None = None
    gate_logits: Tensor | None = None
    entropy: Tensor | None = None


class FeatureRouter(nn.Module):
    """``grain = argmax_g gate([norm_0(z_0), pool(norm_1(z_1)), ...])_g`` for each region (paper, section 3.2).

    In training the argmax is over the logits plus Gumbel noise, and the gate passes the gradient of their softmax
    (straight-through); in evaluation over the raw logits, ties to the coarser granularity.

    Args:
        dim: Channels of each map.
        num_granularities: Number of maps.
        gate: ``"silu"`` or ``"relu"`` for two layers, ``"linear"`` for one.
        groups: Groups of each map's normalization; 0 for none.
        temperature: Of the softmax, above 0.
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

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Routing:
        """Route by the maps; the arithmetic stays in float32 under autocast."""
        with torch.autocast(images.device.type, enabled=False):
            pooled = [
                F.avg_pool2d(norm(values.to(_weight_dtype(self.gate))), 2**g)
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

    def step_scores(self, routing: Routing) -> Tensor:
        """Logits gained per code spent on the step from g to g + 1, float64, ``(B, G - 1, h, w)``.

        Slopes of the upper concave envelope of logit against number of codes, so that they never rise with g and a
        region's own choice is the number of positive ones.
        """
        assert routing.gate_logits is not None
        logits = routing.gate_logits.detach().double().unbind(-1)
        steps = []
        for step in range(len(logits) - 1):
            best = [
                torch.stack([(logits[b] - logits[a]) / (4**b - 4**a) for b in range(step + 1, len(logits))]).amax(0)
                for a in range(step + 1)
            ]
            steps.append(torch.stack(best).amin(0))
        return torch.stack(steps, 1)


class EntropyRouter(nn.Module):
    """``grain = number of thresholds below the region's entropy``: no parameters, no gradient (paper's repository).

    Until :meth:`fit` has seen images, or a state dict has brought thresholds, each image gives its regions of highest
    entropy the finer granularities in exactly the target shares.

    Args:
        ratio: Share of regions of each granularity above the coarsest, coarse to fine; a number for two granularities.
        patch_size: Height and width of a region in pixels.
        bins: Range of gray values that the histogram covers; ``(0.0, 1.0)`` for the checkpoint released by the authors.

    Attributes:
        thresholds: Nats, rising, float32, ``(G - 1,)``; NaN until fitted.
    """

    thresholds: Tensor

    def __init__(
        self, ratio: float | Sequence[float], patch_size: int, bins: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        super().__init__()
        num_steps = len(ratio) if isinstance(ratio, Sequence) else 1
        self.ratio, self.patch_size, self.bins = target_shares("ratio", ratio, num_steps + 1), patch_size, bins
        self.register_buffer("thresholds", torch.full((num_steps,), torch.nan))
        self.fitted = False

    def entropy(self, images: Tensor) -> Tensor:
        """Entropy of each region of ``images (B, 3, H, W)``, nats, float32, ``(B, h, w)``."""
        return patch_entropy(images.detach().float(), self.patch_size, bins=self.bins)

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Routing:
        """Route by the images alone."""
        entropy = self.entropy(images)
        if self.fitted:
            grain = (entropy[..., None] > self.thresholds).sum(-1)
        else:
            grain = _exact_share(self._step_scores(entropy), self.ratio)
        return Routing(grain, entropy=entropy)

    def step_scores(self, routing: Routing) -> Tensor:
        """How far the entropy lies above each threshold, float64, ``(B, G - 1, h, w)``."""
        assert routing.entropy is not None
        return self._step_scores(routing.entropy)

    @torch.no_grad()
    def fit(self, images: Tensor | Iterable[Tensor]) -> Tensor:
        """Set the thresholds to percentiles of these images' entropies, so that they get the target shares on average.

        Args:
            images: A batch ``(B, 3, H, W)`` in [-1, 1], or an iterable of batches (of any sizes).

        Returns:
            The thresholds, nats, ``(G - 1,)``: step g's is the 100 (1 - share of finer granularities)-th percentile.
        """
        batches = [images] if isinstance(images, Tensor) else images
        entropies = [self.entropy(batch.to(self.thresholds.device)).flatten() for batch in batches]
        if not entropies:
            raise InputError("images: expected at least one batch to fit the thresholds on, got none")
        values = torch.cat(entropies).double().sort().values
        shares = [sum(self.ratio[step:]) for step in range(len(self.ratio))]
        return self.set_thresholds([_quantile(values, 1 - share) for share in shares])

    def set_thresholds(self, thresholds: Sequence[float]) -> Tensor:
        """Set the thresholds, nats, one for each granularity above the coarsest, rising; returns the buffer."""
        if len(thresholds) != len(self.thresholds) or list(thresholds) != sorted(thresholds):
            raise InputError(f"thresholds: expected {len(self.thresholds)} rising numbers, got {list(thresholds)}")
        self.thresholds.copy_(torch.tensor(thresholds))
        self.fitted = True
        return self.thresholds

    def _step_scores(self, entropy: Tensor) -> Tensor:
        thresholds = self.thresholds if self.fitted else torch.zeros_like(self.thresholds)
        return entropy.double()[:, None] - thresholds.double()[:, None, None]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.fitted = not bool(self.thresholds.isnan().any())


class RandomRouter(nn.Module):
    """Random regions in exactly the target shares: the paper's ablation of routing.

    New draws at each training step; in evaluation always the same pattern for a grid size, in every image.

    Args:
        ratio: Share of regions of each granularity above the coarsest, coarse to fine; a number for two granularities.
    """

    def __init__(self, ratio: float | Sequence[float]) -> None:
        super().__init__()
        num_steps = len(ratio) if isinstance(ratio, Sequence) else 1
        self.ratio = target_shares("ratio", ratio, num_steps + 1)

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Routing:
        """Route by nothing but the size of the coarsest map."""
        return Routing(_exact_share(self._draw(maps[0], self.training), self.ratio))

    def step_scores(self, routing: Routing) -> Tensor:
        """The fixed pattern of evaluation, float32, ``(B, G - 1, h, w)``."""
        return self._draw(routing.grain[:, None], False)

    def _draw(self, like: Tensor, fresh: bool) -> Tensor:
        batch, _, height, width = like.shape
        if fresh:
            scores = torch.rand(batch, 1, height, width, device=like.device)
        else:
            generator = torch.Generator().manual_seed(0)
            scores = torch.rand(1, 1, height, width, generator=generator).to(like.device)
        return scores.expand(batch, len(self.ratio), height, width)


def _exact_share(scores: Tensor, shares: Sequence[float]) -> Tensor:
    counts = counts_for_ratio(shares, scores[0, 0].numel())
    return allocate(scores, torch.tensor([counts], device=scores.device).expand(scores.shape[0], -1))


def _quantile(ordered: Tensor, share: float) -> float:
    """Linear-interpolation quantile of sorted values of any number."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(torch.lerp(ordered[low], ordered[high], place - low))


def _weight_dtype(gate: Callable[..., Tensor]) -> torch.dtype:
    return next(gate.parameters()).dtype  # type: ignore[attr-defined]
