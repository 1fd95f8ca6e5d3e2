"""Where a twin errs, and where a tokenizer's codes are: figures 2 and 3 of the supplement, of one's own photos.

Figures 4 and 5 show the codes at several ratios: in a report, the photos' bars do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dqcore.data.images import image_to_tensor, tensor_to_image
from dqcore.inference.compare import Shown
from dqcore.inference.reconstruct import reconstruct
from dqcore.report.page import Gallery
from dqcore.report.pictures import error_map, grain_overlay, side_by_side

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["codes_beside_errors"]

#: Photos, at most, and the longest side of each of the three pictures of one.
PHOTOS, LONGEST = 6, 400


def codes_beside_errors(twin: Any, shown: Sequence[Shown], names: Sequence[str], config: Any) -> list[Gallery]:
    """A row for each photo: the photo, the twin's error, the codes of the tokenizer's own choice.

    Args:
        twin: Another tokenizer, usually of fixed length.
        shown: The photos, with what the tokenizer made of them.
        names: Their names.
        config: The tokenizer's configuration.

    Returns:
        One gallery; none where all regions have equally many codes.
    """
    if config.num_granularities == 1 or not shown:
        return []
    rows = [
        (image_to_tensor(_row(twin, photo, config)), name) for photo, name in zip(shown[:PHOTOS], names, strict=False)
    ]
    remark = "From left to right: the photo; the twin's error, bright where large; where this tokenizer's codes are."
    return [Gallery("Codes and the twin's errors", remark, rows)]


def _row(twin: Any, photo: Shown, config: Any) -> Image:
    height, width = photo.image.shape[1:]
    chosen = next(state for state in photo.states if state.detail is None)
    overlay = grain_overlay(chosen.result.padded, chosen.result.grain, config.num_granularities)
    errors = error_map(photo.image, reconstruct(twin, photo.image).reconstruction)
    pictures = [tensor_to_image(photo.image), errors, overlay.crop((0, 0, width, height))]
    scale = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return side_by_side([picture.resize(size) for picture in pictures])
