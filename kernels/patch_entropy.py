"""Entropy of each patch's soft histogram, ``ln M - (sum_b p_b ln p_b) / M`` with ``M = sum_b p_b``.

One program a patch. It takes tiles of pixels and bins, held in registers, and sums them over the pixels. Grey values
and their places among the bins are float64, the kernel ``exp(-d^2 / 2)`` is float32. If bins lie far apart in units of
sigma, as the paper's do, only the REACH nearest bins on either side of a pixel get a weight from it: a bin further away
would get ``exp(-(REACH step / sigma)^2 / 2)`` < 2e-9 of what the nearest gets. Nothing below 1e-30 matters, so hardware
that flushes subnormal numbers to zero gives the same result. Reference: ``dqcore.ops.patch_entropy``.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import next_power_of_2, on_device
from dqcore.kernels.launch import launch


def tile(patch_size: int, num_bins: int) -> dict[str, int]:
    """4,096 elements a tile, which are 64 registers of each of 64 threads."""
    bins = min(64, next_power_of_2(num_bins))
    return {"BLOCK_BINS": bins, "BLOCK_PIXELS": min(4096 // bins, next_power_of_2(patch_size**2))}


def reach(step: float, sigma: float) -> int | None:
    """To how many bins on either side a pixel gives weight; None for all bins, which is cheaper if more than 4 do."""
    bins = math.ceil(6.4 * sigma / step)
    return bins if bins <= 4 else None


@triton.jit
def _weights(nearest, rest, inside, bins, RATE: tl.constexpr, REACH: tl.constexpr):
    """Weight of each pixel in each bin, ``(BLOCK_PIXELS, BLOCK_BINS)``.

    A pixel lies ``rest`` steps above bin ``nearest``; RATE is step / sigma.
    """
    if REACH is None:
        apart = ((nearest[:, None] - bins[None, :].to(tl.float32)) + rest[:, None]) * RATE
        return tl.where(inside[:, None], tl.exp(-0.5 * apart * apart), 0.0)
    else:
        first = nearest.to(tl.int32) - (REACH - 1)
        weights = tl.zeros([rest.shape[0], bins.shape[0]], tl.float32)
        for i in tl.static_range(2 * REACH):
            apart = (rest + (REACH - 1 - i)) * RATE
            kernel = tl.where(inside, tl.exp(-0.5 * apart * apart), 0.0)
            weights = tl.where((bins - i)[None, :] == first[:, None], kernel[:, None], weights)
        return weights


@triton.jit
def _patch_entropy_fwd_kernel(
    images,
    entropy,
    GREY: tl.constexpr,  # weights of the channels
    PATCH: tl.constexpr,
    LOW: tl.constexpr,  # first centre
    STEP: tl.constexpr,  # between centres
    SIGMA: tl.constexpr,
    NUM_BINS: tl.constexpr,
    NO_MASS: tl.constexpr,
    REACH: tl.constexpr,
    BLOCK_BINS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    pixels, stride_b, stride_c, stride_h, stride_w = images
    image, row, column = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    corner = image * stride_b + row.to(tl.int64) * PATCH * stride_h + column.to(tl.int64) * PATCH * stride_w
    mass = 0.0
    spread = 0.0  # sum_b p_b ln p_b
    for first_bin in range(0, NUM_BINS, BLOCK_BINS):
        bins = first_bin + tl.arange(0, BLOCK_BINS)
        total = tl.zeros([BLOCK_BINS], tl.float32)
        for start in range(0, PATCH * PATCH, BLOCK_PIXELS):
            pixel = start + tl.arange(0, BLOCK_PIXELS)
            where = pixels + corner + (pixel // PATCH).to(tl.int64) * stride_h + (pixel % PATCH).to(tl.int64) * stride_w
            grey = tl.zeros([BLOCK_PIXELS], tl.float64)
            for c in tl.static_range(len(GREY)):
                value = tl.load(where, mask=pixel < PATCH * PATCH, other=0.0)  # (BLOCK_PIXELS,)
                grey += GREY[c] * value.to(tl.float32).to(tl.float64)
                where += stride_c  # c times it may exceed 32 bits
            offset = (grey - LOW) * (1.0 / STEP)
            nearest = tl.minimum(tl.maximum(tl.floor(offset), 0.0), NUM_BINS - 1.0)
            rest = (offset - nearest).to(tl.float32)
            weights = _weights(nearest.to(tl.float32), rest, pixel < PATCH * PATCH, bins, STEP / SIGMA, REACH)
            total += tl.sum(weights, 0)
        share = tl.where(bins < NUM_BINS, total / (PATCH * PATCH), 0.0)
        mass += tl.sum(share, 0)
        spread += tl.sum(tl.where(share == 0, 0.0, share * tl.log(tl.where(share == 0, 1.0, share))), 0)
    some = tl.where(mass < NO_MASS, 1.0, mass)
    result = tl.log(some) - spread / some
    result = tl.where((mass < NO_MASS) | (result < 0), 0.0, result)
    tl.store(entropy + (image * tl.num_programs(1) + row) * tl.num_programs(2) + column, result)


def patch_entropy_fwd(
    images: Tensor,
    patch_size: int,
    low: float,
    high: float,
    num_bins: int,
    sigma: float,
    grey: tuple[float, ...],
    no_mass: float,
) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, H / patch_size, W / patch_size)`` float32."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    entropy = torch.empty(batch, rows, columns, dtype=torch.float32, device=images.device)
    if entropy.numel() == 0:
        return entropy
    step = (high - low) / (num_bins - 1)
    with on_device(images):
        launch(_patch_entropy_fwd_kernel, (batch, rows, columns))(
            (images, *images.stride()),
            entropy,
            GREY=grey if channels == 3 else (1.0,),
            PATCH=patch_size,
            LOW=low,
            STEP=step,
            SIGMA=sigma,
            NUM_BINS=num_bins,
            NO_MASS=no_mass,
            REACH=reach(step, sigma),
            **tile(patch_size, num_bins),
            num_warps=2,
            enable_fp_fusion=True,
        )
    return entropy
