"""A router that learns how much of the reconstruction's error each finer region saves.

The straight-through gate of the paper's router feels only the granularity that was chosen. Here both are tried: on a
sample of regions the decoder reconstructs the image with the other granularity as well, and a small network learns to
predict the difference in squared error for each code that it costs. The regions where it is largest are refined, so
that the share of each granularity is met exactly in every batch and needs no weight to tune.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqcore.backends import exporting
from dqcore.distributed import rows_of_all_processes, sum_over_processes
from dqcore.nn.allocation import exact_share, target_shares
from dqcore.nn.routing import Router, Routing
from dqcore.ops.autocast import without_autocast
from dqcore.ops.registry import in_backward

__all__ = ["GainRouter"]

#: In a training step one image in four, and of its regions one in four, is tried at another granularity.
IMAGES_TRIED, REGIONS_TRIED = 4, 4


class GainRouter(Router):
    """Refine the regions with the largest expected gain: squared error saved for each further code.

    In training the target shares hold in each forward pass, of all processes together; so also in each part of a batch
    whose gradients are accumulated.

    Args:
        dim: Channels of each map.
        ratio: Share of regions of each granularity above the coarsest, coarse to fine; a number for two granularities.
        momentum: How fast thresholds and scale follow the batches.

    Attributes:
        thresholds: Expected gain above which a region is refined, float32, ``(G - 1,)``; a moving average over training
            batches. NaN before the first; then the target shares hold in each image by itself. An average of models
            that takes buffers in too (``AveragedModel(use_buffers=True)``) copies them in its first update, and keeps
            that NaN if no batch came before it.
        scale: Moving average of the size of measured gains; the network predicts gains in this unit.
    """

    thresholds: Tensor
    scale: Tensor

    def __init__(self, dim: int, ratio: float | Sequence[float], momentum: float = 0.02) -> None:
        super().__init__()
        self.ratio, self.momentum = target_shares("ratio", ratio), momentum
        finer = len(self.ratio)
        width = 2 * dim * (finer + 1) + 1
        self.predict = nn.Sequential(
            nn.Linear(width, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, finer)
        )
        self.register_buffer("thresholds", torch.full((finer,), torch.nan, dtype=torch.float32))
        self.register_buffer("scale", torch.full((), torch.nan, dtype=torch.float32))

    @without_autocast
    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Routing:
        """Route by the maps and the images' local variance; neither gets a gradient. Weights of half precision too."""
        features, weight = _features(images, maps), next(self.predict.parameters())
        gains = self.predict(features.to(weight.dtype)).to(self.thresholds.dtype).permute(0, 3, 1, 2)
        grain = _grain(gains, self._follow(gains.detach())) if self.training else self._settled_grain(gains.detach())
        return Routing(grain, gains=gains)

    def refinement_scores(self, routing: Routing) -> Tensor:
        """How far the expected gain lies above its threshold, and those of the refinements before it; float64.

        ``(B, G - 1, h, w)``; never rising with g.
        """
        assert routing.gains is not None
        return _above(routing.gains.detach().double(), self.thresholds.nan_to_num().double())

    def loss(
        self, routing: Routing, images: Tensor, reconstruction: Tensor, reconstruct: Callable[[slice, Tensor], Tensor]
    ) -> Tensor:
        """Squared error of the predicted gains, on regions that are tried at a neighbouring granularity.

        Arguments: :meth:`Router.loss`.

        Returns:
            Scalar, in units of ``scale``.

        Gradient: to this router's weights alone.
        """
        assert routing.gains is not None
        some = slice(0, max(1, len(images) // IMAGES_TRIED))
        grain, images, reconstruction = routing.grain[some], images[some], reconstruction[some]
        tried = torch.rand(grain.shape, device=grain.device) < 1 / REGIONS_TRIED
        finest = len(self.ratio)
        up = (grain == 0) | ((grain < finest) & (torch.rand(grain.shape, device=grain.device) < 0.5))
        other = torch.where(tried, torch.where(up, grain + 1, grain - 1), grain)
        with torch.no_grad():
            stride = images.shape[2] // grain.shape[1]
            before, after = (_error(images, x, stride) for x in (reconstruction, reconstruct(some, other)))
            lower = torch.minimum(grain, other)
            gain = torch.where(up, before - after, after - before) / (3 * 4.0**lower)
            gain = gain.sign() * gain.abs().sqrt()  # a few regions gain far more than all others; the root tempers them
            weight = tried.float() / tried.sum().clamp_min(1)
            if not in_backward():  # a pass that is computed again moves no average
                self._follow_size((gain.abs() * weight).sum(), tried.any())
        predicted = routing.gains[some].gather(1, lower.clamp_max(finest - 1)[:, None])[:, 0]
        scale = self.scale.nan_to_num(nan=1.0).clamp_min(1e-12)  # NaN while no region was tried
        return ((predicted - gain / scale).square() * weight).sum()

    def _follow_size(self, size: Tensor, tried: Tensor) -> None:
        """Move ``scale`` towards the mean of the processes that tried a region; where none did, it stays."""
        total, count = sum_over_processes(torch.stack([size, tried.to(size.dtype)])).to(self.scale.dtype).unbind()
        size = total / count.clamp_min(1)
        moved = torch.where(self.scale.isnan(), size, self.scale.lerp(size, self.momentum))
        self.scale.copy_(torch.where(count > 0, moved, self.scale))

    def _settled_grain(self, gains: Tensor) -> Tensor:
        """The grain map by the stored thresholds, or by the target shares of each image where they are NaN.

        Both are computed: so the host does not wait to learn which is needed, and a compiled graph is whole. An
        exported graph has the thresholds alone.
        """
        if exporting():
            return _grain(gains, self.thresholds)
        alone = exact_share(gains.cummin(1).values, self.ratio)
        return torch.where(self.thresholds.isnan().any(), alone, _grain(gains, self.thresholds))

    @torch.no_grad()
    def settle(self, gains: Sequence[Tensor]) -> Tensor:
        """Set and return the thresholds at which images with these gains get the target shares on average.

        Args:
            gains: Of batches of any sizes, each ``(B, G - 1, h, w)``, as in :class:`dqcore.nn.Routing`.
        """
        together = torch.cat([values.transpose(0, 1).flatten(1) for values in gains], 1)
        self.thresholds.copy_(self._thresholds_of(together))
        return self.thresholds

    @torch.no_grad()
    def _follow(self, gains: Tensor) -> Tensor:
        """The thresholds of this batch, which all processes share; the stored ones move towards them."""
        now = self._thresholds_of(rows_of_all_processes(gains.movedim(1, -1).flatten(0, 2)).mT)
        if in_backward():  # a pass that is computed again moves no average
            return now
        self.thresholds.copy_(torch.where(self.thresholds.isnan(), now, self.thresholds.lerp(now, self.momentum)))
        return now

    def _thresholds_of(self, gains: Tensor) -> Tensor:
        """Thresholds ``(G - 1,)`` that give the target shares of gains ``(G - 1, N)``.

        A region passes the threshold of g only if it has passed those before.
        """
        refined, thresholds = torch.ones_like(gains[0], dtype=torch.bool), []
        for g, values in enumerate(gains):
            number = round(min(math.fsum(self.ratio[g:]), 1.0) * len(values))
            thresholds.append(_threshold_of(values, refined, number))
            refined = refined & (values > thresholds[-1])
        return torch.stack(thresholds)


def _above(gains: Tensor, thresholds: Tensor) -> Tensor:
    """Gains ``(B, G - 1, h, w)`` less their thresholds; a refinement is worth no more than those before it."""
    least = list((gains - thresholds[:, None, None]).unbind(1))
    for g in range(1, len(least)):  # ONNX has no cummin
        least[g] = torch.minimum(least[g - 1], least[g])
    return torch.stack(least, 1)


def _grain(gains: Tensor, thresholds: Tensor) -> Tensor:
    return (_above(gains.detach(), thresholds) > 0).sum(1)


def _threshold_of(values: Tensor, among: Tensor, number: int) -> Tensor:
    """A threshold that ``number`` of the values marked in ``among`` exceed; the host does not wait for their count."""
    if not len(values):
        return values.new_zeros(())
    ordered = values.masked_fill(~among, -torch.inf).sort(descending=True).values
    count = among.sum()
    found = ordered[(count - 1).clamp_min(0).view(1)][0] - 1  # below all of them
    if number == 0:
        found = ordered[0]
    elif number < len(ordered):
        found = torch.where(number < count, (ordered[number - 1] + ordered[number]) / 2, found)
    return torch.where(count > 0, found, 0)


def _features(images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Mean and spread of each map in each region, and the logarithm of the pixels' variance, ``(B, h, w, F)``."""
    features = []
    for g, values in enumerate(maps):
        values = values.detach().float()
        mean = F.avg_pool2d(values, 2**g)
        features += [mean, (F.avg_pool2d(values.square(), 2**g) - mean.square()).clamp_min(0).sqrt()]
    stride = images.shape[2] // maps[0].shape[2]
    gray = images.detach().float().mean(1, keepdim=True)
    variance = F.avg_pool2d(gray.square(), stride) - F.avg_pool2d(gray, stride).square()
    features.append(variance.clamp_min(0).add(1e-4).log())
    return torch.cat(features, 1).permute(0, 2, 3, 1)


def _error(images: Tensor, reconstruction: Tensor, stride: int) -> Tensor:
    """Squared error of each region, the mean over pixels and channels, ``(B, h, w)``."""
    return F.avg_pool2d((reconstruction.float() - images.float()).square().mean(1, keepdim=True), stride)[:, 0]
