"""How well a tokenizer reconstructs images it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dqcore.data.batches import Batch
from dqcore.data.images import pad_to_stride, uint8_to_float
from dqcore.distributed import World
from dqcore.metrics.distortion import psnr, round_to_8bit
from dqcore.nn.perceptual import MIN_SIZE, PerceptualLoss


@torch.no_grad()
def validate(
    model: nn.Module, batches: Iterable[Batch], world: World, perceptual: PerceptualLoss | None = None
) -> dict[str, Any]:
    """Measure a tokenizer; it is left in evaluation mode. Every process gets the same numbers.

    The protocol is that of every other number, native size, 8-bit: images are padded to the
    coarsest stride, reconstructions are cropped back and rounded to 8 bits.

    Args:
        model: Tokenizer.
        batches: This process's part of the images.
        world: All processes.
        perceptual: If given, LPIPS is measured too.

    Returns:
        Means over the images: ``val_psnr`` in dB, ``val_reconstruction_loss`` (L1), ``val_perceptual_loss`` (only with
        ``perceptual``, and without images that are too small for it), ``val_ratios`` (share of regions at each
        granularity) and ``val_fine_ratio`` (the last of them). And ``val_usage``, the share of codes that occur in any
        image.
    """
    model.eval()
    quantizer: Any = model.quantizer
    stride = max(getattr(getattr(model, "config", None), "strides", (1,)))
    sums = torch.zeros(5, dtype=torch.float64, device=world.device)
    shares = torch.zeros(quantizer.num_granularities, dtype=torch.float64, device=world.device)
    seen = torch.zeros(quantizer.codebook_size, device=world.device)
    for batch in batches:
        images = uint8_to_float(batch.images.to(world.device))
        height, width = images.shape[2:]
        output = model(pad_to_stride(images, stride))
        reconstruction = round_to_8bit(output.reconstruction[:, :, :height, :width])
        decibels = psnr(images, reconstruction)
        error = (images - reconstruction).abs().mean((1, 2, 3))
        distance = compared = torch.zeros_like(error)
        if perceptual is not None and min(height, width) >= MIN_SIZE:
            distance, compared = perceptual(images, reconstruction), torch.ones_like(error)
        sums += torch.stack([decibels, error, distance, torch.ones_like(error), compared]).double().sum(1)
        grain = torch.zeros_like(output.codes) if output.grain is None else output.grain
        for g in range(len(shares)):
            shares[g] += (grain == g).double().mean((1, 2)).sum()
        seen.index_fill_(0, output.codes.flatten(), 1.0)
    sums, shares, seen = world.sum(sums), world.sum(shares), world.sum(seen)
    psnr_mean, error_mean = (sums[:2] / sums[3]).tolist()
    ratios = (shares / sums[3]).tolist()
    row = {"val_psnr": psnr_mean, "val_reconstruction_loss": error_mean}
    if sums[4]:
        row["val_perceptual_loss"] = float(sums[2] / sums[4])
    return row | {"val_ratios": ratios, "val_fine_ratio": ratios[-1], "val_usage": float((seen > 0).float().mean())}
