"""``dqcore evaluate``: measure a tokenizer on photos, beside its peers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dqcore.cli.broken import end_with_broken
from dqcore.cli.evaluate_sets import Keep, measure_pair, measure_samples, measured, print_rows
from dqcore.cli.targets import check_json_target
from dqcore.distributed import process_rank
from dqcore.errors import InputError
from dqcore.files.sealed import write_sealed
from dqcore.inference.compare import CurvePoint
from dqcore.inference.evaluate import EvaluationOptions, PhotoEvaluation
from dqcore.inference.peers import PeerNumbers
from dqcore.models.weights import TOKENIZER, weights_folder
from dqcore.printing import say

__all__ = ["evaluate"]


def evaluate(
    options: Annotated[EvaluationOptions, arg(name="")],
    *,
    images: Annotated[tuple[Path, ...], Positional] = (),
    checkpoint: Path | None = None,
    compare: tuple[Path, Path] | None = None,
    samples: Path | None = None,
    reference: Path | None = None,
    json: Path | None = None,
) -> None:
    """Measure a tokenizer on photos: distortion, rate, use of the codebook; beside it JPEG and WebP at the same bytes.

    Photos keep their native size: they are padded to the tokenizer's stride, the reconstruction is cropped back and
    rounded to 8 bits, and the mean is taken of each photo's PSNR. Broken files are named and passed over; the exit code
    is then 2.

    A megapixel takes about 5 seconds on one CPU core, 3 more with JPEG and WebP beside it (--no-peers leaves them out),
    and 3 more for each of --ratios. --limit 20 measures 20 photos drawn from them, --size 256 a square of each. Under
    torchrun the processes share the photos.

    With --compare, two tokenizers are measured on the same photos, and their differences have 95 % intervals. With
    --samples and --reference, a folder of samples is measured against real images.

    Args:
        images: Image files, folders that are searched recursively, .txt lists of paths, archives (.tar, .zip, LMDB).
        options: The options of dqcore.inference.evaluate.
        checkpoint: Folder of a saved tokenizer or of a training run; by default the weights that come with dqcore.
        compare: Folders of two tokenizers; or, without images, two files that --json wrote.
        samples: Folder of samples, .txt list of them, or archive.
        reference: Folder of real images, .txt list of them, or archive, to measure the samples against.
        json: Also write the numbers and the protocol to this file.
    """
    if json is not None:
        check_json_target(json, "evaluate", "protocol")
    _check_modes(images, options, checkpoint, compare, samples, reference, json)
    broken: list[str] = []

    def keep(numbers: dict[str, Any]) -> None:  # before they are printed
        if json is not None and process_rank() == 0:
            write_sealed(json, numbers)

    if samples is not None and reference is not None:
        found: dict[str, Any] = measure_samples(samples, reference, options, broken, keep)
    elif compare is not None:
        found = measure_pair(images, compare, options, broken, keep)
    else:
        found = _measure(images, checkpoint or weights_folder(TOKENIZER), options, broken, keep)
    end_with_broken("samples" if samples is not None else "images", broken, _num_read(found) + len(broken))


def _measure(
    images: tuple[Path, ...], checkpoint: Path, options: EvaluationOptions, broken: list[str], keep: Keep
) -> dict[str, Any]:
    """Measure one tokenizer, keep and print what was found; ``broken`` takes why files were passed over."""
    found = measured("evaluate", images, checkpoint, options)
    broken += found.broken
    keep(found.as_json())
    if process_rank() == 0:
        _print(found)
    return found.as_json()


def _num_read(found: dict[str, Any]) -> int:
    """The files that a result stands on."""
    protocol: dict[str, Any] = found.get("measured", found)
    return int(protocol["images"]) + int(protocol.get("samples", 0))


def _check_modes(
    images: tuple[Path, ...],
    options: EvaluationOptions,
    checkpoint: Path | None,
    compare: tuple[Path, Path] | None,
    samples: Path | None,
    reference: Path | None,
    json: Path | None,
) -> None:
    """Raise if words of two different ways to call the verb are mixed."""
    if (samples is None) != (reference is None):
        raise InputError("samples: expected together with reference")
    if samples is not None and (images or checkpoint is not None or compare is not None):
        raise InputError("samples: not with images, checkpoint or compare; give real images as reference")
    if compare is not None and json is not None and json.resolve() in [path.resolve() for path in compare]:
        raise InputError(f"json: {json} is one of the two results to compare; choose another name")
    if compare is not None and checkpoint is not None:
        raise InputError("compare: not with checkpoint; name both tokenizers")
    idle: tuple[str, ...] = ("ratios", "twin") if compare is not None else ()
    if samples is not None:
        idle = ("ratio", "num_codes", "ratios", "twin", "vgg_weights")
    if compare is not None and not images and all(path.is_file() for path in compare):  # nothing is measured
        idle = tuple(f.name for f in dataclasses.fields(EvaluationOptions) if f.name not in ("device", "timeout"))
    for name in idle:
        if getattr(options, name) != getattr(EvaluationOptions(), name):
            raise InputError(f"{name}: not with {'samples' if samples is not None else 'compare'}")


def _print(found: PhotoEvaluation) -> None:
    sets = [(name, f"{value:.5g}") for name, value in found.sets.items()]
    protocol = [(name, str(value)) for name, value in found.protocol.items() if value is not None]
    print_rows([*found.numbers.table(), *sets, *protocol])
    if found.peers:
        say()
        say("beside it, on the same photos (a codec's bytes include its header)")
        for peer in found.peers:
            say(f"  {peer.name:<36}{_numbers(peer, found.numbers.num_images)}")
    if found.curve:
        say()
        say("share of fine regions, rate and distortion")
        for point in found.curve:
            say(f"  {point.detail:<8.4g}{_point(point)}")


def _numbers(peer: PeerNumbers, num_images: int) -> str:
    named = (("SSIM", peer.ssim), ("MS-SSIM", peer.ms_ssim))
    similar = "".join(f", {name} {value:.4f}" for name, value in named if value is not None)
    text = f"{peer.psnr:.2f} dB{similar}, {peer.bytes_per_image:.0f} bytes"
    if peer.too_large:
        text += f"; its smallest file is larger than ours for {peer.too_large} of {num_images}"
    if peer.left_out:
        text += f"; without {peer.left_out} of {num_images}, which are too large for it"
    return text


def _point(point: CurvePoint) -> str:
    peers = "".join(
        f", {peer.name} {peer.psnr:.2f} dB{' in ' + format(peer.bytes_per_image, '.0f') if peer.too_large else ''}"
        for peer in point.peers
    )
    return f"{point.bits_per_pixel:.4f} bits/pixel, {point.bytes_per_image:.0f} bytes, {point.psnr:.2f} dB{peers}"
