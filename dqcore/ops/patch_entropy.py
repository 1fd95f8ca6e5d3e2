"""``patch_entropy``: entropy of each patch's grey values, ``-sum_b q_b ln q_b`` over a soft histogram.

The entropy router compares it with thresholds, where the other routers learn a gate (paper section 3.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dqcore import backends
from dqcore.errors import InputError
from dqcore.ops.checks import check_tensor
from dqcore.ops.cpu.patch_entropy import patch_entropy_cpu
from dqcore.ops.extension import FEATURES, call, native
from dqcore.ops.reference.patch_entropy import GREY, NO_MASS, patch_entropy_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["patch_entropy"]

MOST_BINS = 64  # with more, the histograms of 32 lanes do not fit shared memory
MOST_SIDE = 64  # of a patch; in a larger one a lane would add up more than 128 pixels in float32


def patch_entropy(
    images: Tensor,
    patch_size: int,
    *,
    bins: tuple[float, float] = (-1.0, 1.0),
    num_bins: int = 32,
    sigma: float = 0.01,
) -> Tensor:
    """Soft-histogram entropy of each patch, ``-sum_b q_b ln q_b``, ``q_b ~ mean_i exp(-((v_i - c_b) / sigma)^2 / 2)``.

    Args:
        images: Colour ``(B, 3, H, W)`` or grey ``(B, 1, H, W)``, values in [-1, 1]; float16, bfloat16, float32 or
            float64. Colour becomes grey with the weights :data:`dqcore.ops.reference.patch_entropy.GREY`.
        patch_size: Side of a patch in pixels; divides H and W. Patches do not overlap.
        bins: First and last bin centre. ``(0.0, 1.0)`` fits the thresholds of the released checkpoint; it does not see
            what is darker than mid-grey.
        num_bins: Number of centres, spaced evenly from first to last; at least 2.
        sigma: Standard deviation of the kernel, in units of pixel value; above 0.

    Returns:
        Entropies ``(B, H / patch_size, W / patch_size)``, float32 (float64 for float64 images), in nats, in
        ``[0, ln num_bins]``. A patch of one value at a bin centre, or far from every bin, has entropy 0; a patch with a
        NaN has entropy NaN.

    Raises:
        TypeError: ``images`` has the wrong type or dtype.
        ValueError: The shape, or a setting, is out of range.

    Gradient: none.
    Determinism: the same on every run; backends agree within 1e-5.
    Cost: reads the images once; less than 32 MB beside them and the result, no (patch, pixel, bin) tensor.
    """
    check_tensor("images", images, dim=4)
    if images.shape[1] not in (1, 3):
        raise InputError(f"images: expected 1 or 3 channels, got shape {tuple(images.shape)}")
    if patch_size < 1 or images.shape[2] % patch_size or images.shape[3] % patch_size:
        raise InputError(
            f"patch_size: expected a divisor of height and width, {tuple(images.shape[2:])}, got {patch_size}"
        )
    low, high = bins
    if not -math.inf < low < high < math.inf:
        raise InputError(f"bins: expected finite (first, last) with first < last, got {bins}")
    if num_bins < 2:
        raise InputError(f"num_bins: expected at least 2, got {num_bins}")
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma: expected a finite number above 0, got {sigma}")
    entropy: Tensor = torch.ops.dqcore.patch_entropy(images.detach(), patch_size, low, high, num_bins, sigma)
    return entropy


def _fake(images: Tensor, patch_size: int, low: float, high: float, num_bins: int, sigma: float) -> Tensor:
    batch, _, height, width = images.shape
    wide = torch.promote_types(images.dtype, torch.float32)
    return images.new_empty((batch, height // patch_size, width // patch_size), dtype=wide)


def _gpu(images: Tensor, patch_size: int, low: float, high: float, num_bins: int, sigma: float) -> Tensor:
    """The extension where a pixel gives weight to few bins, and these fit shared memory; else the Triton kernel."""
    from dqcore.kernels.patch_entropy import patch_entropy_fwd, reach

    near = reach((high - low) / (num_bins - 1), sigma)
    small = num_bins <= MOST_BINS and patch_size <= MOST_SIDE and images.numel() < 2**31 * patch_size**2
    if near is None or not small or images.device.type == "cpu" or not backends.available("extension", images.device):
        return patch_entropy_fwd(images, patch_size, low, high, num_bins, sigma, GREY, NO_MASS)
    return patch_entropy_extension(images, patch_size, low, high, num_bins, sigma, near)


def patch_entropy_extension(
    images: Tensor, patch_size: int, low: float, high: float, num_bins: int, sigma: float, reach: int
) -> Tensor:
    """By csrc: at most MOST_BINS bins, of which a pixel gives weight to ``reach`` on either side of it."""
    check_tensor("images", images, dim=4, dtypes=FEATURES)
    entropy = _fake(images, patch_size, low, high, num_bins, sigma)
    if entropy.numel() == 0:
        return entropy
    step = (high - low) / (num_bins - 1)
    weights = [weight / step for weight in (GREY if images.shape[1] == 3 else (1.0, 0.0, 0.0))]
    rate = step / sigma * math.sqrt(0.5 / math.log(2))  # exp(-(d / sigma)^2 / 2) as a power of 2
    bins = native().Bins(-low / step, weights, num_bins, reach, rate, NO_MASS)
    given = (images.data_ptr(), FEATURES.index(images.dtype), images.shape, images.stride(), patch_size)
    call("patch_entropy", images.device, native().Images(*given), bins, entropy.data_ptr())
    return entropy


register(
    "patch_entropy",
    patch_entropy_reference,
    fake=_fake,
    cpu=Implementation(patch_entropy_cpu, "torch"),
    gpu=Implementation(_gpu, "triton"),
)
