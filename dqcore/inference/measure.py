"""A tokenizer measured on batches of images: distortion, rate, use of the codebook, whether its codes follow detail."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.metrics.coding import (
    bits_per_pixel,
    code_counts,
    code_usage,
    codes_per_image,
    entropy_bits_per_pixel,
    grain_counts,
    perplexity,
)
from dqcore.metrics.distortion import psnr, ssim
from dqcore.metrics.rank import spearman
from dqcore.models.tokenizers.base import Encoding
from dqcore.ops import patch_entropy

__all__ = ["Evaluation", "encode", "evaluate_tokenizer"]


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate_tokenizer` measures; means are over images.

    Attributes:
        num_images: Images measured.
        psnr: Mean PSNR, dB.
        ssim: Mean structural similarity, at most 1.
        lpips: Mean perceptual distance, or None where it was not measured.
        codes_per_image: Mean number of codes.
        bits_per_pixel: Mean rate without entropy coding, see :func:`dqcore.metrics.bits_per_pixel`.
        entropy_bits_per_pixel: Rate of an ideal memoryless entropy coder over all images together.
        usage: Share of the codebook's codes that occur at all, in [0, 1].
        perplexity: ``exp`` of the entropy of the code frequencies, in [1, K].
        ratios: Share of regions at each granularity, coarse to fine; sums to 1.
        rank_correlation: Spearman's rank correlation of the regions' granularities with the entropies of their grey
            values; None where all regions have the same granularity.
        code_counts: How often each code occurs, ``K`` numbers.
    """

    num_images: int
    psnr: float
    ssim: float
    lpips: float | None
    codes_per_image: float
    bits_per_pixel: float
    entropy_bits_per_pixel: float
    usage: float
    perplexity: float
    ratios: tuple[float, ...]
    rank_correlation: float | None
    code_counts: tuple[int, ...]

    @property
    def fine_ratio(self) -> float:
        """Share of regions at the finest granularity."""
        return self.ratios[-1]

    def table(self) -> list[tuple[str, str]]:
        """Names and values to print."""
        rows = [
            ("PSNR", f"{self.psnr:.2f} dB"),
            ("SSIM", f"{self.ssim:.4f}"),
            ("LPIPS", "not measured" if self.lpips is None else f"{self.lpips:.4f}"),
            ("codes per image", f"{self.codes_per_image:.1f}"),
            ("bits per pixel", f"{self.bits_per_pixel:.4f} ({self.entropy_bits_per_pixel:.4f} entropy-coded)"),
            ("codebook in use", f"{self.usage:.1%} of {len(self.code_counts)} codes"),
            ("perplexity", f"{self.perplexity:.1f}"),
            ("ratio per granularity", ", ".join(f"{ratio:.4f}" for ratio in self.ratios) + " (coarse to fine)"),
        ]
        if self.rank_correlation is not None:
            rows.append(("rank correlation", f"{self.rank_correlation:.3f} (grain map, local entropy)"))
        return rows

    def as_json(self) -> dict[str, Any]:
        """The attributes by name, as plain values."""
        return dataclasses.asdict(self)


def encode(
    model: Any, images: Tensor, ratio: float | Sequence[float] | None = None, num_codes: int | Tensor | None = None
) -> Encoding:
    """``model.encode``, also for a tokenizer of one granularity, which takes neither ratio nor number of codes.

    Args:
        model: A tokenizer.
        images: ``(B, 3, H, W)`` in [-1, 1].
        ratio: Share of fine regions, see :meth:`dqcore.DQVAE.encode`; None leaves it to the router.
        num_codes: Codes of each image; instead of ``ratio``.

    Raises:
        ValueError: A ratio or a number of codes for a tokenizer with one granularity.
    """
    if ratio is None and num_codes is None:
        return model.encode(images)
    if model.config.num_granularities == 1:
        name = "ratio" if ratio is not None else "num_codes"
        raise InputError(f"{name}: this tokenizer has one granularity, its number of codes is fixed")
    return model.encode(images, ratio=ratio, num_codes=num_codes)


@torch.no_grad()
def evaluate_tokenizer(
    model: Any,
    batches: Iterable[Tensor],
    *,
    ratio: float | Sequence[float] | None = None,
    num_codes: int | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    each: Callable[[Tensor, Encoding, Tensor], object] | None = None,
) -> Evaluation:
    """Encode and decode images, and measure.

    Args:
        model: A tokenizer; put into evaluation mode.
        batches: Image batches ``(B, 3, H, W)`` in [-1, 1], on any device; sides are multiples of the coarsest stride.
        ratio: Share of fine regions to encode with, see :meth:`dqcore.DQVAE.encode`.
        num_codes: Codes per image to encode with.
        perceptual: Also measure this distance, such as :class:`dqcore.nn.perceptual.PerceptualLoss`.
        each: Called with every batch, its encoding and its reconstructions, which are clamped to [-1, 1].

    Returns:
        An :class:`Evaluation`.

    Raises:
        ValueError: There are no images.
    """
    model.eval()
    device = model.quantizer.codebook.weight.device
    totals = _Totals(model.config)
    for batch in batches:
        images = batch.to(device)
        encoding = encode(model, images, ratio, num_codes)
        result = model.decode(encoding.codes, encoding.grain).float().clamp(-1, 1)
        distance = torch.zeros(len(images)) if perceptual is None else perceptual(images, result)
        totals.add(images, encoding, result, distance)
        if each is not None:
            each(images, encoding, result)
    found = totals.evaluation()
    return dataclasses.replace(found, lpips=None) if perceptual is None else found


class _Totals:
    """What has been measured so far, with a tokenizer of this configuration."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._images: list[Tensor] = []  # of each image: PSNR, SSIM, LPIPS, codes, bits per pixel
        self._codes = torch.zeros(config.codebook_size, dtype=torch.int64)
        self._regions = torch.zeros(config.num_granularities, dtype=torch.int64)
        self._grains: list[Tensor] = []
        self._entropies: list[Tensor] = []
        self._pixels = 0

    def add(self, images: Tensor, encoding: Encoding, result: Tensor, distance: Tensor) -> None:
        """Measure a batch, whose LPIPS is ``distance (B,)``."""
        size, number = self._config.codebook_size, self._config.num_granularities
        grain, area = encoding.grain, images.shape[2] * images.shape[3]
        columns = (
            psnr(images, result),
            ssim(images, result),
            distance,
            codes_per_image(grain),
            bits_per_pixel(grain, size, number, area),
        )
        self._images.append(torch.stack([column.double().cpu() for column in columns], 1))
        self._codes += code_counts(encoding.codes, grain, size).cpu()
        self._regions += grain_counts(grain, number).cpu()
        self._grains.append(grain.flatten().cpu())
        self._entropies.append(patch_entropy(images, self._config.strides[0]).flatten().cpu())
        self._pixels += len(images) * area

    def evaluation(self) -> Evaluation:
        """The numbers of all images together."""
        if not self._images:
            raise InputError("batches: expected at least one image, got none")
        decibels, similarity, distance, codes, rate = torch.cat(self._images).mean(0).tolist()
        correlation = spearman(torch.cat(self._grains), torch.cat(self._entropies))
        return Evaluation(
            num_images=sum(map(len, self._images)),
            psnr=decibels,
            ssim=similarity,
            lpips=distance,
            codes_per_image=codes,
            bits_per_pixel=rate,
            entropy_bits_per_pixel=entropy_bits_per_pixel(self._codes, self._regions, self._pixels),
            usage=code_usage(self._codes),
            perplexity=perplexity(self._codes),
            ratios=tuple((self._regions / self._regions.sum()).tolist()),
            rank_correlation=None if math.isnan(correlation) else correlation,
            code_counts=tuple(self._codes.tolist()),
        )
