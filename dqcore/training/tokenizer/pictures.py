"""What a tokenizer makes of a few photos while it learns: photo, reconstruction and grain map, one below the other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.data.crops import CenterCrop
from dqcore.data.dataset import read_prepared
from dqcore.data.images import image_to_tensor, readable_images
from dqcore.drawing import granularity_colour

__all__ = ["read_shown", "show"]

#: Photos shown.
PHOTOS = 4
#: How much of a tinted photo is the colour of its regions.
TINT = 0.4


def read_shown(paths: Iterable[Path], size: int, resize: int) -> Tensor | None:
    """The central squares of the first photos that can be read.

    Args:
        paths: Files.
        size: Side of a square in pixels.
        resize: Pixels that a photo's shorter side is resized to before.

    Returns:
        ``(B, 3, size, size)`` in [-1, 1], at most 4; None where none can be read.
    """
    cut, found = CenterCrop(size, resize), list[Tensor]()
    for _, image in readable_images(paths, lambda *_: None, read=lambda path: read_prepared(path, cut)):
        found.append(image_to_tensor(image))
        if len(found) == PHOTOS:
            break
    return torch.stack(found) if found else None


@torch.no_grad()
def show(model: Any, images: Tensor) -> Tensor:
    """Encode and decode photos, and put them in rows.

    Args:
        model: A tokenizer, or another model that may be trained as one; it is left in evaluation mode.
        images: ``(B, 3, S, S)`` in [-1, 1], on the model's device.

    Returns:
        ``(3, 3 * S, B * S)`` in [-1, 1], on the CPU: photos, reconstructions, and the photos tinted by granularity.
    """
    model.eval()
    output = model(images)
    grain = torch.zeros_like(output.codes) if output.grain is None else output.grain
    tinted = _tinted(images, grain, model.quantizer.num_granularities)
    rows = (images, output.reconstruction.float().clamp(-1, 1), tinted)
    return torch.cat([torch.cat(list(row.cpu()), 2) for row in rows], 1)


def _tinted(images: Tensor, grain: Tensor, num_granularities: int) -> Tensor:
    colours = [granularity_colour(g, num_granularities) for g in range(num_granularities)]
    palette = torch.tensor(colours, dtype=torch.float32, device=images.device) / 127.5 - 1
    side = images.shape[-1] // grain.shape[-1]
    cells = grain.repeat_interleave(side, 1).repeat_interleave(side, 2)
    return (1 - TINT) * images.mean(1, keepdim=True) + TINT * palette[cells].permute(0, 3, 1, 2)
