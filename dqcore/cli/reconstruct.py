"""``dqcore reconstruct``: encode and decode images, and show what came back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from dqcore.data.images import image_to_tensor, read_image, tensor_to_image
from dqcore.errors import InputError
from dqcore.files import write_atomically
from dqcore.inference.load import load_tokenizer
from dqcore.inference.reconstruct import Reconstruction
from dqcore.inference.reconstruct import reconstruct as reconstruct_image
from dqcore.report.pictures import grain_overlay, side_by_side

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["reconstruct"]


def reconstruct(
    images: Annotated[tuple[Path, ...], Positional],
    *,
    checkpoint: Path,
    out: Path = Path("reconstructions"),
    ratio: float | None = None,
    num_codes: int | None = None,
    device: str = "auto",
) -> None:
    """Encode and decode images of any size, and write pictures of input, grain map and reconstruction.

    Args:
        images: Image files.
        checkpoint: Folder of a saved tokenizer or of a training run.
        out: Folder for the pictures, each a PNG with input, grain map overlay and reconstruction side by side.
        ratio: Share of fine regions in every image, in [0, 1]; by default the router decides.
        num_codes: Codes of every image; instead of ratio.
        device: auto, cpu, cuda or cuda:N.
    """
    if not images:
        raise InputError("images: expected at least one file")
    targets = _targets(images, out)
    pixels = [image_to_tensor(read_image(path)) for path in images]
    model = load_tokenizer(checkpoint, device)
    for path, target, image in zip(images, targets, pixels, strict=True):
        result = reconstruct_image(model, image, ratio=ratio, num_codes=num_codes)
        picture = _picture(result, model.config.num_granularities)
        write_atomically(target, lambda file, picture=picture: picture.save(file, "PNG"))  # type: ignore[misc]
        print(
            f"{path}: {result.psnr:.2f} dB, {result.num_codes} codes, {result.bits_per_pixel:.4f} bits/pixel: {target}"
        )


def _picture(result: Reconstruction, num_granularities: int) -> Image:
    """Input, grain map overlay and reconstruction, side by side."""
    overlay = grain_overlay(result.padded, result.grain, num_granularities)
    overlay = overlay.crop((0, 0, result.image.shape[2], result.image.shape[1]))
    return side_by_side([tensor_to_image(result.image), overlay, tensor_to_image(result.reconstruction)])


def _targets(images: Sequence[Path], out: Path) -> list[Path]:
    """The path of each image's PNG; refuse paths that would overwrite another picture or an image."""
    targets = [out / f"{path.stem}.png" for path in images]
    for target in targets:
        if targets.count(target) > 1:
            raise InputError(f"images: two of them would be written to {target}")
    for path, target in zip(images, targets, strict=True):
        if target.resolve() == path.resolve():
            raise InputError(f"out: {target} would overwrite the image itself")
    return targets
