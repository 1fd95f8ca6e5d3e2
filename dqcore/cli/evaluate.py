"""``dqcore evaluate``: measure a tokenizer on photos, beside its peers."""

from __future__ import annotations

import sys
from json import loads
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dqcore.distributed import process_rank
from dqcore.errors import InputError
from dqcore.files import write_json
from dqcore.inference.compare import CurvePoint
from dqcore.inference.evaluate import EvaluationOptions, PhotoEvaluation, evaluate_photos
from dqcore.inference.peers import PeerNumbers
from dqcore.models.weights import TOKENIZER, weights_folder
from dqcore.progress import progress_bar

__all__ = ["evaluate"]


def evaluate(
    images: Annotated[tuple[Path, ...], Positional],
    options: Annotated[EvaluationOptions, arg(name="")],
    *,
    checkpoint: Path | None = None,
    json: Path | None = None,
) -> None:
    """Measure a tokenizer on photos: distortion, rate, use of the codebook; beside it JPEG and WebP at the same bytes.

    Photos keep their native size: they are padded to the tokenizer's stride, the reconstruction is cropped back and
    rounded to 8 bits, and the mean is taken of each photo's PSNR. Under torchrun the processes share the photos.

    Args:
        images: Image files, folders that are searched recursively, .txt lists of paths, archives (.tar, .zip, LMDB).
        options: The options of dqcore.inference.evaluate.
        checkpoint: Folder of a saved tokenizer or of a training run; by default the weights that come with dqcore.
        json: Also write the numbers and the protocol to this file.
    """
    if json is not None:
        _check_target(json)
    with progress_bar() as bar:
        task = bar.add_task("evaluate", total=None)
        found = evaluate_photos(
            images,
            checkpoint or weights_folder(TOKENIZER),
            options,
            progress=lambda finished, total: bar.update(task, completed=finished, total=total),
        )
    if process_rank() != 0:
        return
    for reason in found.broken:
        print(f"broken: {reason}", file=sys.stderr)
    if json is not None:
        write_json(json, found.as_json())
    _print(found)


def _check_target(path: Path) -> None:
    """Raise if a file would be replaced that holds no numbers of this verb."""
    if not path.exists():
        return
    try:
        before = loads(path.read_text())
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict) or "protocol" not in before:
        raise InputError(f"json: {path} is there already and holds no numbers of dqcore evaluate; choose another name")


def _print(found: PhotoEvaluation) -> None:
    rows = [*found.numbers.table(), *((name, str(value)) for name, value in found.protocol.items())]
    for name, text in rows:
        print(f"{name:<26}{text}")
    if found.peers:
        print("\nbeside it, on the same photos (a codec's bytes include its header)")
        for peer in found.peers:
            print(f"  {peer.name:<36}{_numbers(peer, found.numbers.num_images)}")
    if found.curve:
        print("\nshare of fine regions, rate and distortion")
        for point in found.curve:
            print(f"  {point.detail:<8.4g}{_point(point)}")


def _numbers(peer: PeerNumbers, num_images: int) -> str:
    scales = "" if peer.ms_ssim is None else f", MS-SSIM {peer.ms_ssim:.4f}"
    text = f"{peer.psnr:.2f} dB, SSIM {peer.ssim:.4f}{scales}, {peer.bytes_per_image:.0f} bytes"
    if peer.too_large:
        text += f"; its smallest file is larger than ours for {peer.too_large} of {num_images}"
    return text


def _point(point: CurvePoint) -> str:
    peers = "".join(
        f", {peer.name} {peer.psnr:.2f} dB{' in ' + format(peer.bytes_per_image, '.0f') if peer.too_large else ''}"
        for peer in point.peers
    )
    return f"{point.bits_per_pixel:.4f} bits/pixel, {point.bytes_per_image:.0f} bytes, {point.psnr:.2f} dB{peers}"
