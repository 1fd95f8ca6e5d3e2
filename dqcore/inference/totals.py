"""The numbers of an evaluation, added up batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqcore.distributed import World
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
from dqcore.metrics.distortion import psnr, similarities
from dqcore.metrics.rank import spearman
from dqcore.models.tokenizers.base import Encoding
from dqcore.ops import patch_entropy

__all__ = ["EACH", "Totals"]

#: What is measured of each image, in this order.
EACH = ("psnr", "ssim", "ms_ssim", "lpips", "codes", "bytes", "uncoded_bits", "pixels")


class Totals:
    """What has been measured so far, with a tokenizer of this configuration."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._images: list[Tensor] = []  # a row for each image, its columns are EACH
        self._codes = torch.zeros(config.codebook_size, dtype=torch.int64)
        self._regions = torch.zeros(config.num_granularities, dtype=torch.int64)
        self._grains: list[Tensor] = []
        self._entropies: list[Tensor] = []

    def add(
        self,
        images: Tensor,
        padded: Tensor,
        encoding: Encoding,
        results: Tensor,
        distance: Tensor,
        num_bytes: Sequence[int],
    ) -> None:
        """Measure a batch.

        Args:
            images: ``(B, 3, H, W)``.
            padded: The images as they were encoded.
            encoding: Their encoding.
            results: Their reconstructions, ``(B, 3, H, W)``.
            distance: LPIPS of each, ``(B,)``; NaN if it was not measured.
            num_bytes: Bytes of each.
        """
        size, number = self._config.codebook_size, self._config.num_granularities
        grain, area = encoding.grain, images.shape[2] * images.shape[3]
        similarity, scales = similarities(images, results)
        columns = (
            psnr(images, results),
            similarity,
            torch.full((len(images),), math.nan) if scales is None else scales,
            distance,
            codes_per_image(grain),
            torch.tensor(num_bytes),
            bits_per_pixel(grain, size, number, area) * area,
            torch.full((len(images),), area),
        )
        self._images.append(torch.stack([column.double().cpu() for column in columns], 1))
        self._codes += code_counts(encoding.codes, grain, size).cpu()
        self._regions += grain_counts(grain, number).cpu()
        self._grains.append(grain.flatten().cpu())
        self._entropies.append(patch_entropy(padded, self._config.strides[0]).flatten().cpu())

    def join(self, world: World) -> None:
        """Take in what the other processes have measured, one after the other; every one calls this."""
        everyone = world.gather(self)
        for name in ("_images", "_grains", "_entropies"):
            setattr(self, name, [part for other in everyone for part in getattr(other, name)])
        self._codes = torch.stack([other._codes for other in everyone]).sum(0)
        self._regions = torch.stack([other._regions for other in everyone]).sum(0)

    def numbers(self) -> dict[str, Any]:
        """The fields of :class:`dqcore.inference.measure.Evaluation`, of all images together."""
        if not self._images:
            raise InputError("batches: expected at least one image, got none")
        table = torch.cat(self._images)
        decibels, similarity, scales, distance, codes, num_bytes, bits, _ = table.mean(0).tolist()
        pixels = int(table[:, -1].sum())
        per_pixel = len(table) / pixels
        grains, entropies = torch.cat(self._grains), torch.cat(self._entropies)
        correlation = spearman(grains, entropies) if len(grains) > 1 else math.nan  # one image of one region has none
        return {
            "num_images": len(table),
            "psnr": decibels,
            "ssim": similarity,
            "ms_ssim": None if math.isnan(scales) else scales,
            "lpips": None if math.isnan(distance) else distance,
            "codes_per_image": codes,
            "bytes_per_image": num_bytes,
            "bits_per_pixel": 8 * num_bytes * per_pixel,
            "fixed_bits_per_pixel": bits * per_pixel,
            "entropy_bits_per_pixel": entropy_bits_per_pixel(self._codes, self._regions, pixels),
            "usage": code_usage(self._codes),
            "perplexity": perplexity(self._codes),
            "ratios": tuple((self._regions / self._regions.sum()).tolist()),
            "rank_correlation": None if math.isnan(correlation) else correlation,
            "code_counts": tuple(self._codes.tolist()),
            "each": _columns(table),
        }


def _columns(table: Tensor) -> dict[str, tuple[float | None, ...]]:
    """What was measured of each image, by name; None where it could not be."""
    found = dict(zip(EACH, table.T, strict=True))
    found["bits_per_pixel"] = 8 * found["bytes"] / found["pixels"]
    names = ("psnr", "ssim", "ms_ssim", "lpips", "bits_per_pixel")
    return {name: tuple(None if math.isnan(value) else value for value in found[name].tolist()) for name in names}
