"""``dqcore reconstruct``: what comes back of an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from dqcore.errors import InputError

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
    from dqcore.data.images import image_to_tensor, read_image, tensor_to_image
    from dqcore.files import write_atomically
    from dqcore.inference.load import load_tokenizer
    from dqcore.inference.reconstruct import reconstruct as reconstruct_image
    from dqcore.report.pictures import grain_overlay, side_by_side

    if not images:
        raise InputError("images: expected at least one file")
    targets = _targets(images, out)
    pixels = [image_to_tensor(read_image(path)) for path in images]
    model = load_tokenizer(checkpoint, device)
    for path, target, image in zip(images, targets, pixels, strict=True):
        result = reconstruct_image(model, image, ratio=ratio, num_codes=num_codes)
        overlay = grain_overlay(result.padded, result.grain, model.config.num_granularities)
        overlay = overlay.crop((0, 0, image.shape[2], image.shape[1]))
        row = side_by_side([tensor_to_image(image), overlay, tensor_to_image(result.reconstruction)])
        write_atomically(target, lambda file, row=row: row.save(file, "PNG"))  # type: ignore[misc]
        print(
            f"{path}: {result.psnr:.2f} dB, {result.num_codes} codes, {result.bits_per_pixel:.4f} bits/pixel: {target}"
        )


def _targets(images: Sequence[Path], out: Path) -> list[Path]:
    """A PNG for each image; two of one name would overwrite each other."""
    targets = [out / f"{path.stem}.png" for path in images]
    for target in targets:
        if targets.count(target) > 1:
            raise InputError(f"images: two of them would be written to {target}")
    for path, target in zip(images, targets, strict=True):
        if target.resolve() == path.resolve():
            raise InputError(f"out: {target} would overwrite the image itself")
    return targets
