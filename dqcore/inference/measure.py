"""A tokenizer measured on images: distortion, rate, use of the codebook, and whether its codes follow detail."""

from __future__ import annotations

import dataclasses
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
        bits_per_pixel: Mean rate without entropy coding, see :func:`dqcore.evaluation.bits_per_pixel`.
        entropy_bits_per_pixel: Rate of an ideal memoryless entropy coder over all images together.
        usage: Share of the codebook's codes that occur at all, in [0, 1].
        perplexity: ``exp`` of the entropy of the code frequencies, in [1, K].
        ratios: Share of regions at each granularity, coarse to fine; sums to 1.
        rank_correlation: Spearman's, of the grain map with the entropy of each region's grey values; None with one
            granularity or where all regions have the same.
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
        """The fields as plain values."""
        return dataclasses.asdict(self)


def encode(
    model: Any, images: Tensor, ratio: float | Sequence[float] | None = None, num_codes: int | Tensor | None = None
) -> Encoding:
    """``model.encode`` for any tokenizer.

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
) -> Evaluation:
    """Encode and decode images, and measure.

    Args:
        model: A tokenizer; put into evaluation mode.
        batches: Image batches ``(B, 3, H, W)`` in [-1, 1], on any device; sides are multiples of the coarsest stride.
        ratio: Share of fine regions to encode with, see :meth:`dqcore.DQVAE.encode`.
        num_codes: Codes per image to encode with.
        perceptual: Also measure this distance, such as :class:`dqcore.nn.perceptual.PerceptualLoss`.

    Returns:
        An :class:`Evaluation`.

    Raises:
        ValueError: There are no images.
    """
    model.eval()
    size, levels = model.config.codebook_size, model.config.num_granularities
    device = model.quantizer.codebook.weight.device
    sums: list[Tensor] = []
    codes = torch.zeros(size, dtype=torch.int64)
    regions = torch.zeros(levels, dtype=torch.int64)
    grains, entropies, pixels = [], [], 0
    for batch in batches:
        images = batch.to(device)
        encoding = encode(model, images, ratio, num_codes)
        grain = encoding.grain
        result = model.decode(encoding.codes, grain).float().clamp(-1, 1)
        area = images.shape[2] * images.shape[3]
        pixels += len(images) * area
        distance = torch.zeros(len(images)) if perceptual is None else perceptual(images, result)
        columns = (
            psnr(images, result),
            ssim(images, result),
            distance,
            codes_per_image(grain),
            bits_per_pixel(grain, size, levels, area),
        )
        sums.append(torch.stack([column.double().cpu() for column in columns], 1))
        codes += code_counts(encoding.codes, grain, size).cpu()
        regions += grain_counts(grain, levels).cpu()
        grains.append(grain.flatten().cpu())
        entropies.append(patch_entropy(images, model.config.strides[0]).flatten().cpu())
    if not sums:
        raise InputError("batches: expected at least one image, got none")
    means = torch.cat(sums).mean(0).tolist()
    correlation = spearman(torch.cat(grains), torch.cat(entropies))
    return Evaluation(
        num_images=sum(map(len, sums)),
        psnr=means[0],
        ssim=means[1],
        lpips=None if perceptual is None else means[2],
        codes_per_image=means[3],
        bits_per_pixel=means[4],
        entropy_bits_per_pixel=entropy_bits_per_pixel(codes, regions, pixels),
        usage=code_usage(codes),
        perplexity=perplexity(codes),
        ratios=tuple((regions / regions.sum()).tolist()),
        rank_correlation=correlation if correlation == correlation else None,
        code_counts=tuple(codes.tolist()),
    )
