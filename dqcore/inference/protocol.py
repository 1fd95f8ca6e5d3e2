"""How a photo is measured, the same everywhere: what is cut from it, and what its reconstruction is compared with.

By default a photo keeps its native size. It is padded to the tokenizer's coarsest stride, the reconstruction is cropped
back and rounded to the 8 bits that a file would hold. PSNR is that of each photo; then the mean is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dqcore.data.crops import CenterCrop
from dqcore.data.images import pad_to_stride
from dqcore.errors import InputError
from dqcore.metrics.distortion import round_to_8bit

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["NATIVE", "Protocol", "decode_to_size", "pad_to_stride"]


@dataclass(frozen=True)
class Protocol:
    """What of a photo is measured; ``str()`` names it.

    Attributes:
        size: Height and width of the central square in pixels, at least 16; None keeps the whole photo.
        resize: Pixels that the shorter side is resized to before; by default ``size``. Not without ``size``.
    """

    size: int | None = None
    resize: int | None = None

    def __post_init__(self) -> None:
        if self.size is None and self.resize is not None:
            raise InputError("resize: expected none without size, because photos then keep their native size")
        if self.size is not None and self.size < 16:
            raise InputError(f"size: expected at least 16 pixels, got {self.size}")
        if self.size is not None and self.resize is not None and self.resize < self.size:
            raise InputError(f"resize: expected at least size ({self.size}), got {self.resize}")

    def prepare(self, image: Image) -> Image:
        """What is measured of a photo."""
        if self.size is None:
            return image
        return CenterCrop(self.size, self.resize or self.size).prepare(image)

    def __str__(self) -> str:
        if self.size is None:
            return "native size, 8-bit"
        return f"central {self.size}x{self.size} pixels, shorter side resized to {self.resize or self.size}, 8-bit"


#: The protocol that every number follows unless another one is asked for.
NATIVE = Protocol()


def decode_to_size(model: Any, codes: Tensor, grain: Tensor, height: int, width: int) -> Tensor:
    """Reconstructions as a file would hold them.

    Args:
        model: A tokenizer.
        codes: Code maps of padded images, ``(B, H, W)``.
        grain: Their grain maps, ``(B, h, w)``.
        height: Of the images before they were padded, in pixels.
        width: As ``height``.

    Returns:
        float32, ``(B, 3, height, width)`` in [-1, 1], rounded to 8 bits.
    """
    return round_to_8bit(model.decode(codes, grain)[:, :, :height, :width])
