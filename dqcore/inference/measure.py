"""A tokenizer measured on batches of images: distortion, rate, use of the codebook, whether its codes follow detail."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqcore.data.images import pad_to_stride
from dqcore.distributed import ALONE, World
from dqcore.inference.encode_batch import EncodedImages, encode
from dqcore.inference.protocol import NATIVE, decode_to_size
from dqcore.inference.rate import StreamCost
from dqcore.inference.totals import Totals
from dqcore.models.tokenizers.base import Encoding
from dqcore.stream.checks import check_tokenizer, image_batches

#: encode is among them for this file's old path, see :mod:`dqcore.compat.moved`.
__all__ = ["Evaluation", "Measured", "encode", "evaluate_tokenizer"]


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate_tokenizer` measures; means are over images.

    Attributes:
        num_images: Images measured.
        psnr: Mean PSNR, dB.
        ssim: Mean structural similarity, at most 1.
        ms_ssim: Mean multi-scale structural similarity, at most 1; None where an image is smaller than 176 pixels.
        lpips: Mean perceptual distance, or None where it was not measured.
        codes_per_image: Mean number of codes.
        bytes_per_image: Mean size of the ``.dqc`` streams that hold them.
        bits_per_pixel: Bits written for each pixel: of all streams together, over the pixels of all images.
        fixed_bits_per_pixel: An estimate, without entropy coding: see :func:`dqcore.metrics.bits_per_pixel`.
        entropy_bits_per_pixel: An estimate, for an ideal memoryless entropy coder over all images together.
        usage: Share of the codebook's codes that occur at all, in [0, 1].
        perplexity: ``exp`` of the entropy of the code frequencies, in [1, K].
        ratios: Share of regions at each granularity, coarse to fine; sums to 1.
        rank_correlation: Spearman's rank correlation of the regions' granularities with the entropies of their grey
            values; None where all regions have the same granularity.
        code_counts: How often each code occurs, ``K`` numbers.
        each: The numbers of each image, in their order, by name: ``psnr``, ``ssim``, ``ms_ssim``, ``lpips``,
            ``bits_per_pixel``; None where the image is too small, or LPIPS was not measured.
        protocol: What was measured of each image, by name.
    """

    num_images: int
    psnr: float
    ssim: float
    ms_ssim: float | None
    lpips: float | None
    codes_per_image: float
    bytes_per_image: float
    bits_per_pixel: float
    fixed_bits_per_pixel: float
    entropy_bits_per_pixel: float
    usage: float
    perplexity: float
    ratios: tuple[float, ...]
    rank_correlation: float | None
    code_counts: tuple[int, ...]
    each: dict[str, tuple[float | None, ...]]
    protocol: str = str(NATIVE)

    def in_order(self, order: Sequence[int]) -> Evaluation:
        """The same with ``each`` in another order: for each image, where its numbers stand now."""
        each = {name: tuple(values[place] for place in order) for name, values in self.each.items()}
        return dataclasses.replace(self, each=each)

    @property
    def fine_ratio(self) -> float:
        """Share of regions at the finest granularity."""
        return self.ratios[-1]

    def table(self) -> list[tuple[str, str]]:
        """Names and values to print."""
        rows = [
            ("PSNR", f"{self.psnr:.2f} dB ({self.protocol})"),
            ("SSIM", f"{self.ssim:.4f}"),
            ("MS-SSIM", "not measured, an image is too small" if self.ms_ssim is None else f"{self.ms_ssim:.4f}"),
            ("LPIPS", "not measured" if self.lpips is None else f"{self.lpips:.4f}"),
            ("codes per image", f"{self.codes_per_image:.1f}"),
            ("bytes per image", f"{self.bytes_per_image:.0f} as written"),
            ("bits per pixel", f"{self.bits_per_pixel:.4f} as written"),
            ("  estimates", f"{self.entropy_bits_per_pixel:.4f} ideal coder, {self.fixed_bits_per_pixel:.4f} uncoded"),
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


class Measured(NamedTuple):
    """A batch as it was measured.

    Attributes:
        images: ``(B, 3, H, W)`` in [-1, 1].
        padded: The images as they were encoded.
        encoded: Gives their codes at other ratios.
        encoding: Their encoding.
        results: Its reconstructions, ``(B, 3, H, W)``, rounded to 8 bits.
        num_bytes: Bytes of each image's stream.
    """

    images: Tensor
    padded: Tensor
    encoded: EncodedImages
    encoding: Encoding
    results: Tensor
    num_bytes: list[int]


@torch.no_grad()
def evaluate_tokenizer(
    model: Any,
    batches: Iterable[Tensor],
    *,
    ratio: float | Sequence[float] | None = None,
    num_codes: int | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    cost: StreamCost | None = None,
    protocol: str = str(NATIVE),
    each: Callable[[Measured], object] | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Encode and decode images, and measure; see :mod:`dqcore.inference.protocol` for how.

    Args:
        model: A tokenizer; put into evaluation mode.
        batches: Image batches ``(B, 3, H, W)`` in [-1, 1], each of any size, on any device.
        ratio: Share of fine regions to encode with, see :meth:`dqcore.DQVAE.encode`.
        num_codes: Codes per image to encode with.
        perceptual: Also measure this distance, such as :class:`dqcore.nn.perceptual.PerceptualLoss`.
        cost: Counts the bytes; by default with uniform tables.
        protocol: What of each photo the batches hold, by name.
        each: Called with every batch as it was measured.
        world: The processes that share the images; the numbers are those of all.

    Returns:
        An :class:`Evaluation`.

    Raises:
        ValueError: There are no images.
        TypeError: ``model`` is no tokenizer, or ``batches`` are no tensors.
    """
    check_tokenizer(model)
    model.eval()
    device = model.quantizer.codebook.weight.device
    totals, cost = Totals(model.config), cost or StreamCost.uniform(model.config)
    for batch in image_batches(batches):
        images = batch.to(device)
        height, width = images.shape[2:]
        padded = pad_to_stride(images, model.config.strides[0])
        encoded = EncodedImages(model, padded)
        encoding = encoded.encoding(ratio, num_codes)
        results = decode_to_size(model, encoding.codes, encoding.grain, height, width)
        maps = zip(encoding.codes.cpu(), encoding.grain.cpu(), strict=True)
        num_bytes = [cost.bytes_of(codes, grain, height, width) for codes, grain in maps]
        distance = torch.full((len(images),), math.nan) if perceptual is None else perceptual(images, results)
        totals.add(images, padded, encoding, results, distance, num_bytes)
        if each is not None:
            each(Measured(images, padded, encoded, encoding, results, num_bytes))
    totals.join(world)
    return Evaluation(**totals.numbers(), protocol=protocol)
