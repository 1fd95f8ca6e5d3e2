"""A photo of which a part is kept, and the rest drawn by a prior."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dqcore.data.images import image_to_tensor, read_image
from dqcore.errors import InputError
from dqcore.inference.encode_batch import encode
from dqcore.inference.sample import OPEN, decode_sequence
from dqcore.models.priors.base import Prior
from dqcore.models.sampling.settings import Sampling
from dqcore.ops.pack_codes import pack_codes

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Completion", "complete", "kept_part"]

_RECTANGLE = re.compile(r"\s*-?\d{1,18}\s*(,\s*-?\d{1,18}\s*){3}")


@dataclass(frozen=True)
class Completion:
    """What :func:`complete` made; images are in [-1, 1].

    Attributes:
        photo: The photo at the prior's size, ``(3, H, W)``.
        given: The photo's reconstruction, decoded as the completions are, in the regions that were kept; the others are
            light grey. ``(3, H, W)``.
        images: The completions, ``(N, 3, H, W)``.
        num_given: Codes that were kept.
        mask: Regions that were kept, bool, ``(h, w)``.
    """

    photo: Tensor
    given: Tensor
    images: Tensor
    num_given: int
    mask: Tensor


def kept_part(keep: str, size: tuple[int, int]) -> Image:
    """Which pixels of a photo are kept, as a picture that is white where they are.

    Args:
        keep: ``upper`` or ``left`` (half), ``x,y,w,h`` of a rectangle in pixels, or the path of a mask, white where
            the photo is kept, which has the photo's size.
        size: Width and height of the photo in pixels.

    Raises:
        InputError: It is none of these.
    """
    from PIL import Image, ImageDraw

    width, height = size
    halves = {"upper": (0, 0, width, height // 2), "left": (0, 0, width // 2, height)}
    if keep in halves:
        box = halves[keep]
    elif _RECTANGLE.fullmatch(keep):
        x, y, w, h = map(int, keep.split(","))
        box = (x, y, x + w, y + h)
        if w < 1 or h < 1 or x < 0 or y < 0 or box[2] > width or box[3] > height:
            raise InputError(f"keep: expected a rectangle x,y,w,h within {width}x{height} pixels, got {keep}")
    elif Path(keep).is_file():
        mask = read_image(keep).convert("L")
        if mask.size != size:
            raise InputError(f"keep: expected a mask of the photo's {width}x{height} pixels, {keep} has {mask.size}")
        return mask.point(lambda value: 255 if value >= 128 else 0)
    else:
        raise InputError(f"keep: expected upper, left, x,y,w,h in pixels or the file of a mask, got {keep!r}")
    picture = Image.new("L", size, 0)
    if box[2] > box[0] and box[3] > box[1]:  # half of a photo of one pixel is none
        ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return picture


@torch.no_grad()
def complete(
    prior: Prior,
    tokenizer: Any,
    photo: Image,
    keep: str,
    count: int = 4,
    *,
    labels: Tensor | int | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Completion:
    """Keep the codes of a part of a photo, and draw the others.

    The photo is cut around its middle to the prior's aspect ratio and resized to its size. A region is kept if at least
    half of its pixels are.

    Args:
        prior: A prior, in evaluation mode.
        tokenizer: The tokenizer it belongs to.
        photo: An RGB image of any size.
        keep: See :func:`kept_part`; in the photo's own pixels.
        count: How many completions.
        labels: As in ``prior.sample``.
        sampling: How to draw.
        seed: Completion i depends on the seed and on i alone.

    Raises:
        InputError: No region is kept, or every region.
    """
    from PIL import ImageOps

    rows, columns = prior.config.region_grid
    stride = tokenizer.config.strides[0]
    size = (columns * stride, rows * stride)
    mask = image_to_tensor(ImageOps.fit(kept_part(keep, photo.size).convert("RGB"), size))[0]
    regions = mask.view(rows, stride, columns, stride).mean((1, 3)) >= 0
    if not bool(regions.any()) or bool(regions.all()):
        kept = "no region" if not bool(regions.any()) else "every region"
        raise InputError(f"keep: expected to keep some of the {rows * columns} regions, {keep} keeps {kept}")
    image = image_to_tensor(ImageOps.fit(photo, size))
    device = tokenizer.quantizer.codebook.weight.device
    encoding = encode(tokenizer, image[None].to(device))
    whole = pack_codes(
        encoding.codes.expand(count, -1, -1),
        encoding.grain.expand(count, -1, -1),
        num_granularities=prior.config.num_granularities,
    )
    given = whole.where(regions)
    drawn = prior.sample(count, labels, sampling, seed=seed, given=given)
    return Completion(
        photo=image,
        given=_where(decode_sequence(tokenizer, whole[:1])[0].clamp(-1, 1).cpu(), regions),
        images=decode_sequence(tokenizer, drawn).clamp(-1, 1).cpu(),
        num_given=int(given.lengths[0]),
        mask=regions,
    )


def _where(image: Tensor, regions: Tensor) -> Tensor:
    """An image ``(3, H, W)`` that is light grey outside of some ``regions``, ``(h, w)`` bool."""
    stride = image.shape[-1] // regions.shape[-1]
    return image.where(regions.repeat_interleave(stride, 0).repeat_interleave(stride, 1), OPEN)
