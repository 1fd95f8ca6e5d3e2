"""How a photo is measured, the same everywhere: what is cut from it, and what its reconstruction is compared with.

By default a photo keeps its native size. It is padded to the tokenizer's coarsest stride, the reconstruction is cropped
back and rounded to the 8 bits that a file would hold. PSNR is that of each photo; then the mean is taken.

A result keeps its protocol as texts and numbers by name. Two results may stand side by side where
:data:`MUST_AGREE` says the same of both.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dqcore.data.crops import CenterCrop
from dqcore.data.reading import check_sides
from dqcore.errors import InputError
from dqcore.fields import check_fields
from dqcore.metrics.distortion import round_to_8bit

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "MUST_AGREE",
    "NATIVE",
    "Protocol",
    "check_same_protocol",
    "decode_to_size",
    "said_otherwise",
    "say_versions",
]

#: Parts of a protocol that two results must have in common to be compared.
MUST_AGREE = ("protocol", "images", "data hash")


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
        check_fields(self)
        if self.size is None and self.resize is not None:
            raise InputError("resize: expected none without size, because photos then keep their native size")
        if self.size is not None and self.size < 16:
            raise InputError(f"size: expected at least 16 pixels, got {self.size}")
        check_sides(size=self.size, resize=self.resize)
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


def say_versions(*packages: str) -> str:
    """Installed versions, such as ``"dqcore 0.1.0, torch 2.14.1"``; packages that are not installed are left out."""
    found = []
    for name in ("dqcore", "torch", *packages):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def said_otherwise(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, ...] = MUST_AGREE) -> list[str]:
    """Where two results' protocols differ, in words; a part that one of them lacks differs from any value."""
    return [f"{name} {a.get(name)!r} and {b.get(name)!r}" for name in names if a.get(name) != b.get(name)]


def check_same_protocol(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raise unless two results were measured on the same photos in the same way.

    Args:
        a: The protocol of a result.
        b: That of another.

    Raises:
        InputError: They differ in what :data:`MUST_AGREE` names.
    """
    if found := said_otherwise(a, b):
        raise InputError(f"compare: these results were not measured alike: {'; '.join(found)}")
