"""How many codes and bits images take, and how well the codebook is used."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dqcore.errors import InputError

__all__ = [
    "bits_per_pixel",
    "code_counts",
    "code_usage",
    "codes_per_image",
    "entropy_bits_per_pixel",
    "grain_counts",
    "perplexity",
]


def codes_per_image(grain: Tensor) -> Tensor:
    """Codes of each image, ``sum over regions of 4^g``.

    Args:
        grain: Grain map, int64, ``(B, h, w)``.

    Returns:
        int64, ``(B,)``.
    """
    return (4**grain).sum((1, 2))


def bits_per_pixel(grain: Tensor, codebook_size: int, num_granularities: int, num_pixels: int) -> Tensor:
    """Rate without entropy coding, ``(codes * log2 K + regions * log2 G) / pixels``.

    Every code costs log2 K bits, and every region log2 G bits to say which granularity it has.

    Args:
        grain: Grain map, int64, ``(B, h, w)``.
        codebook_size: K.
        num_granularities: G; 1 makes the grain map free.
        num_pixels: Height times width of an image (without padding).

    Returns:
        float64, ``(B,)``.
    """
    codes = codes_per_image(grain).double()
    return (codes * math.log2(codebook_size) + grain[0].numel() * math.log2(num_granularities)) / num_pixels


def entropy_bits_per_pixel(code_counts: Tensor, grain_counts: Tensor, num_pixels: int) -> float:
    """Rate of an ideal entropy coder without memory, ``(codes * H(code) + regions * H(granularity)) / pixels``.

    Codes and granularities are coded by their own frequencies over all images. The tables of frequencies are not
    counted, so for few images the true rate is higher.

    Args:
        code_counts: How often each code occurs in all images together, ``(K,)``.
        grain_counts: How many regions have each granularity, ``(G,)``.
        num_pixels: Pixels of all images together.
    """
    return (_total_bits(code_counts) + _total_bits(grain_counts)) / num_pixels


def code_counts(codes: Tensor, grain: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs; a code counts once, however many cells of the code map it fills.

    Args:
        codes: Code map, int64, ``(B, H, W)``.
        grain: Grain map, int64, ``(B, h, w)``.
        codebook_size: K.

    Returns:
        int64, ``(K,)``.
    """
    scale = codes.shape[1] // grain.shape[1]
    finest = scale.bit_length() - 1
    cells = grain.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    span = scale // 2 ** cells.clamp(max=finest)  # cells that a code fills, in each direction
    rows = torch.arange(codes.shape[1], device=codes.device)[:, None]
    columns = torch.arange(codes.shape[2], device=codes.device)[None]
    first = (rows % span == 0) & (columns % span == 0)
    return torch.bincount(codes[first], minlength=codebook_size)


def grain_counts(grain: Tensor, num_granularities: int) -> Tensor:
    """How many regions of grain maps ``(B, h, w)`` have each granularity: int64, ``(G,)``."""
    return torch.bincount(grain.flatten(), minlength=num_granularities)


def code_usage(counts: Tensor) -> float:
    """Share of the codes that occur at all, in [0, 1], from counts ``(K,)``.

    Raises:
        InputError: Counts of another shape, such as a code map.
    """
    _check_counts(counts)
    return float((counts > 0).double().mean())


def perplexity(counts: Tensor) -> float:
    """``exp(H(p))`` of the code frequencies, in [1, K]: how many codes, used evenly, have the same entropy.

    Args:
        counts: How often each code was chosen, ``(K,)``; whole numbers or averages.

    Raises:
        InputError: Counts of another shape, such as a code map.
    """
    _check_counts(counts)
    total = float(counts.double().sum())
    return math.exp(_total_bits(counts) * math.log(2) / total) if total > 0 else 1.0


def _check_counts(counts: Tensor) -> None:
    """Raise unless these can be counts."""
    if counts.dim() != 1:
        wanted = f"counts: expected (K,), how often each code occurs, got {tuple(counts.shape)}"
        raise InputError(
            f"{wanted}; of codes: torch.bincount(codes.flatten(), minlength=K), of several granularities "
            f"dqcore.metrics.coding.code_counts(codes, grain, K)"
        )


def _total_bits(counts: Tensor) -> float:
    """Bits that N symbols with counts ``n_k`` take, each by its own frequency: ``sum_k n_k log2(N / n_k)``."""
    counts = counts.double()
    return float((torch.special.entr(counts).sum() + torch.special.xlogy(counts.sum(), counts.sum())) / math.log(2))
