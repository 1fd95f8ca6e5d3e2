"""``dqcore evaluate``: measure a tokenizer on a folder of images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from dqcore.cli.progress import progress_bar

__all__ = ["evaluate"]


def evaluate(
    folder: Annotated[Path, Positional],
    *,
    checkpoint: Path,
    image_size: int | None = None,
    resize: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    ratio: float | None = None,
    num_codes: int | None = None,
    perceptual_weights: Path | None = None,
    batch_size: int = 8,
    json: Path | None = None,
    device: str = "auto",
) -> None:
    """Measure a tokenizer on images: distortion, rate, use of the codebook.

    Args:
        folder: Folder of images, searched recursively, or a .txt list of their paths.
        checkpoint: Folder of a saved tokenizer or of a training run.
        image_size: Height and width of the centre crop in pixels; by default what the tokenizer was made for.
        resize: Pixels of the shorter side before the crop; by default image_size.
        limit: Measure a random choice of this many images.
        seed: Of that choice.
        ratio: Share of fine regions in every image, in [0, 1]; by default the router decides.
        num_codes: Codes of every image; instead of ratio.
        perceptual_weights: File of VGG16's weights (torchvision's vgg16-397923af.pth), to measure LPIPS too.
        batch_size: Images that go through the model together.
        json: Also write the numbers and the protocol to this file.
        device: auto, cpu, cuda or cuda:N.
    """
    from dqcore.files import write_json
    from dqcore.inference.evaluate import evaluate_folder

    with progress_bar() as bar:
        task = bar.add_task("evaluate", total=None)
        result, protocol, broken = evaluate_folder(
            folder,
            checkpoint,
            image_size=image_size,
            resize=resize,
            limit=limit,
            seed=seed,
            ratio=ratio,
            num_codes=num_codes,
            perceptual_weights=perceptual_weights,
            batch_size=batch_size,
            device=device,
            progress=lambda finished, total: bar.update(task, completed=finished, total=total),
        )
    for reason in broken:
        print(f"broken: {reason}", file=sys.stderr)
    if json is not None:
        write_json(json, result.as_json() | {"protocol": protocol})
    for name, value in [*result.table(), *((name, str(value)) for name, value in protocol.items())]:
        print(f"{name:<26}{value}")
