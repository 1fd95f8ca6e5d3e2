"""Pictures of what a tokenizer did: grain maps drawn over images, and maps of the error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dqcore.data.images import tensor_to_image
from dqcore.drawing import granularity_colour

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["error_map", "error_scale", "grain_layer", "grain_overlay", "granularity_colour", "side_by_side"]

#: Black, purple, orange, pale yellow: ever brighter, so that the map can also be read in grey.
_HEAT = np.array([(8, 6, 20), (84, 24, 110), (200, 60, 70), (250, 150, 50), (252, 246, 190)], dtype=np.float64)
_TINT = 0.4


def grain_overlay(image: Tensor, grain: Tensor, num_granularities: int, *, scale: int = 1) -> Image:
    """The image with each region tinted by its granularity, and a line around each of its codes.

    Args:
        image: ``(3, H, W)`` in [-1, 1].
        grain: Its grain map, int64, ``(h, w)``; the side of a region is ``H / h`` pixels.
        num_granularities: G, which decides the colours.
        scale: Enlarge the picture first, so that the lines stay thin.

    Returns:
        An RGB image of ``(scale * W, scale * H)`` pixels.
    """
    from PIL import Image as Images
    from PIL import ImageDraw

    region = image.shape[1] // grain.shape[0] * scale
    size = (image.shape[2] * scale, image.shape[1] * scale)
    photo = tensor_to_image(image).resize(size, Images.Resampling.BICUBIC)
    palette = np.array([granularity_colour(g, num_granularities) for g in range(num_granularities)], dtype=np.float64)
    cells = grain.repeat_interleave(region, 0).repeat_interleave(region, 1).cpu().numpy()
    grey = np.asarray(photo.convert("L"), dtype=np.float64)[..., None]
    pixels = 0.3 * np.asarray(photo, dtype=np.float64) + 0.7 * grey
    tinted = (1 - _TINT) * pixels + _TINT * palette[cells]
    picture = Images.fromarray(tinted.round().astype(np.uint8))
    lines = Images.new("L", size, 0)
    draw = ImageDraw.Draw(lines)
    for y, row in enumerate(grain.tolist()):
        for x, granularity in enumerate(row):
            _draw_cells(draw, x * region, y * region, region, 2**granularity)
    picture.paste(Images.new("RGB", size, (255, 255, 255)), mask=lines)
    return picture


def error_map(image: Tensor, reconstruction: Tensor, *, limit: float = 0.5) -> Image:
    """Mean absolute error over the channels, from dark (none) to bright.

    Args:
        image: ``(3, H, W)`` in [-1, 1].
        reconstruction: The same shape.
        limit: Error from which on the map is brightest, for values in [-1, 1]; 0.5 is 64 of 255 grey values.
    """
    from PIL import Image as Images

    error = (image - reconstruction.clamp(-1, 1)).abs().mean(0).div(limit).clamp(0, 1)
    place = error.double().cpu().numpy() * (len(_HEAT) - 1)
    low = np.minimum(place.astype(np.int64), len(_HEAT) - 2)
    share = (place - low)[..., None]
    return Images.fromarray(((1 - share) * _HEAT[low] + share * _HEAT[low + 1]).round().astype(np.uint8))


def side_by_side(pictures: list[Image], *, gap: int = 4) -> Image:
    """Pictures of one height in a row, with white between them."""
    from PIL import Image as Images

    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    row = Images.new("RGB", (width, max(picture.height for picture in pictures)), (255, 255, 255))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def _draw_cells(draw: object, left: int, top: int, region: int, count: int) -> None:
    """The region's outline (opacity 150 of 255), and the lines between its ``count x count`` codes (90)."""
    cell = region // count
    for index in range(1, count):
        draw.line([(left + index * cell, top), (left + index * cell, top + region - 1)], fill=90)  # type: ignore[attr-defined]
        draw.line([(left, top + index * cell), (left + region - 1, top + index * cell)], fill=90)  # type: ignore[attr-defined]
    draw.line([(left, top), (left + region, top)], fill=150)  # type: ignore[attr-defined]
    draw.line([(left, top), (left, top + region)], fill=150)  # type: ignore[attr-defined]


def grain_layer(grain: Tensor, num_granularities: int, size: tuple[int, int], stride: int) -> Image:
    """The tints and lines of :func:`grain_overlay` alone, to be laid over a photo; small, because it has few colours.

    Args:
        grain: Grain map, int64, ``(h, w)``.
        num_granularities: G.
        size: Height and width of the photo in pixels; the grain map may reach over its lower and right edges.
        stride: Side of a region in pixels.

    Returns:
        A palette image with transparent colours, of the photo's shape.
    """
    from PIL import Image as Images

    rows, columns = grain.shape
    cell = min(48, max(4, 1024 // max(rows, columns))) // 4 * 4
    cells = np.kron(grain.cpu().numpy().astype(np.uint8), np.ones((cell, cell), np.uint8))
    place = np.indices(cells.shape) % cell
    span = np.maximum(1, cell >> cells.astype(np.int64))
    inner = ((place % span) == 0).any(0)
    layer = np.where(inner, num_granularities, cells)
    layer[(place == 0).any(0)] = num_granularities + 1
    picture = Images.fromarray(layer.astype(np.uint8)).convert("P")
    tints = [value for g in range(num_granularities) for value in granularity_colour(g, num_granularities)]
    picture.putpalette([*tints, *[255] * 6])
    picture.info["transparency"] = bytes([*[round(255 * _TINT)] * num_granularities, 90, 150])
    return picture.crop((0, 0, round(size[1] * cell / stride), round(size[0] * cell / stride)))


def error_scale() -> str:
    """The colours of :func:`error_map` from none to most, as a CSS gradient."""
    return f"linear-gradient(to right, {', '.join(f'rgb({int(r)} {int(g)} {int(b)})' for r, g, b in _HEAT)})"
