"""What the verbs of the command line do: the parameters of each function are its options, its docstring is its help.

Everything but the standard library is imported inside, so that ``dqcore --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

if TYPE_CHECKING:
    from rich.progress import Progress

    from dqcore.training import TokenizerTraining

__all__ = ["convert", "demo", "encode", "evaluate", "info", "reconstruct", "report", "train_tokenizer"]


def demo(*, steps: int | None = None, out: Path = Path("runs/demo"), seed: int = 0, prior: bool = True) -> None:
    """Train a small tokenizer and a prior on the photographs that ship with dqcore, and write a report.

    Needs neither a GPU nor a network; takes less than five minutes on two cores.

    Args:
        steps: The tokenizer's optimiser steps; by default as many as the page's numbers need.
        out: Folder of the run; a demo that lies there already is replaced.
        seed: Of weights, crops and order.
        prior: Go on to a small prior, whose samples and completions the report shows; without it three minutes do.
    """
    from dqcore.demo import run_demo

    run_demo(out=out, seed=seed, steps=steps, prior=prior)


def encode(
    folder: Annotated[Path, Positional],
    *,
    checkpoint: Path,
    out: Path,
    ratio: float | None = None,
    num_codes: int | None = None,
    shard_size: int = 1000,
    batch_size: int = 8,
    device: str = "auto",
) -> None:
    """Encode images to codes and grain maps, in safetensors shards with an index.

    Images keep their size and are padded to the coarsest stride. Broken files are counted and named. A run that was
    killed goes on where its last shard ended.

    Args:
        folder: Folder of images, searched recursively, or a .txt list of their paths.
        checkpoint: Folder of a saved tokenizer or of a training run.
        out: Folder for the shards.
        ratio: Share of fine regions in every image, in [0, 1]; by default the router decides.
        num_codes: Codes of every image; instead of ratio.
        shard_size: Images in a shard.
        batch_size: Images of one size that go through the model together, at most.
        device: auto, cpu, cuda or cuda:N.
    """
    from dqcore.data.encode import encode_images
    from dqcore.data.images import list_images
    from dqcore.data.shards import ShardWriter
    from dqcore.evaluation.load import load_tokenizer
    from dqcore.models.saved import fingerprint

    if min(shard_size, batch_size) < 1:
        raise ValueError("shard_size, batch_size: expected at least 1")
    root = folder if folder.is_dir() else folder.parent
    paths = [(_name(path, root), path) for path in list_images(folder)]
    model = load_tokenizer(checkpoint, device)
    description = {
        "tokenizer": fingerprint(checkpoint),
        "model": type(model).__name__,
        "strides": list(model.config.strides),
        "codebook_size": model.config.codebook_size,
        "ratio": ratio,
        "num_codes": num_codes,
    }
    writer = ShardWriter(out, description, shard_size=shard_size)
    with progress_bar() as bar:
        task = bar.add_task("encode", total=len(paths))
        encode_images(
            model,
            paths,
            writer,
            ratio=ratio,
            num_codes=num_codes,
            batch_size=batch_size,
            progress=lambda finished: bar.update(task, completed=finished),
        )
    images, broken = writer.index["images"], writer.index["broken"]
    for entry in broken:
        print(f"broken: {entry['reason']}", file=sys.stderr)
    codes = sum(entry["num_codes"] for entry in images)
    mean = f", {codes / len(images):.1f} codes per image" if images else ""
    print(f"{len(images)} images{mean}, {len(broken)} broken files passed over; codes in {out}")


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
    from dqcore.evaluation.load import load_tokenizer
    from dqcore.evaluation.reconstruct import reconstruct as reconstruct_image
    from dqcore.report.pictures import grain_overlay, side_by_side
    from dqcore.training.files import write_atomically

    if not images:
        raise ValueError("images: expected at least one file")
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
    from dqcore.evaluation.folder import evaluate_folder
    from dqcore.training.files import write_json

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


def report(
    run: Annotated[Path, Positional],
    *,
    images: Path | None = None,
    out: Path | None = None,
    photos: int = 12,
    device: str = "auto",
) -> None:
    """Write the report of a training run: one HTML file with pictures, curves and numbers.

    Args:
        run: Folder of the run.
        images: Folder or .txt list of images to show and measure; by default those that the run held out.
        out: The HTML file; by default report.html in the run's folder.
        photos: Images shown, at most.
        device: auto, cpu, cuda or cuda:N.
    """
    from dqcore.report.run import report_run

    page, _ = report_run(run, images=images, out=out, max_photos=photos, device=device)
    print(page)


def convert(checkpoint: Annotated[Path, Positional], *, config: Path, out: Path) -> None:
    """Convert a checkpoint of the paper's authors, a tokenizer or a DQ-Transformer, to a folder that dqcore loads.

    Args:
        checkpoint: Their .ckpt, .pt or .safetensors file; nothing in it is executed.
        config: JSON file with their settings: kind, router, ch, ... of a tokenizer, coarse_hw, heads, ... of a
            DQ-Transformer (see dqcore.convert and dqcore.convert_prior).
        out: Folder for the model.
    """
    import json

    from dqcore.convert import dqtransformer_from_official, dqvae_from_official, load_official

    state = load_official(checkpoint)
    try:
        settings = json.loads(config.read_text())
    except ValueError as error:
        raise ValueError(f"{config}: expected a JSON object ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{config}: expected a JSON object, got {type(settings).__name__}")
    model = (dqtransformer_from_official if "content_layers" in settings else dqvae_from_official)(state, settings)
    model.save_pretrained(out)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters in {out}")


def info() -> None:
    """Show versions, devices, which kernels are there and why others are not, and the presets."""
    from dqcore.info import lines

    for line in lines():
        print(line)


def train_tokenizer(options: TokenizerTraining) -> None:
    """Train, and say where the model is."""
    from dqcore.training import train_tokenizer as train

    run = train(options)
    last = next((row for row in reversed(run.metrics) if "val_psnr" in row), None)
    numbers = f", {last['val_psnr']:.2f} dB on held-out images" if last else ""
    print(f"model in {run.path / 'model'}{numbers}; dqcore report {run.path} makes its report")


def _name(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _targets(images: Sequence[Path], out: Path) -> list[Path]:
    """A PNG for each image; two of one name would overwrite each other."""
    targets = [out / f"{path.stem}.png" for path in images]
    for target in targets:
        if targets.count(target) > 1:
            raise ValueError(f"images: two of them would be written to {target}")
    for path, target in zip(images, targets, strict=True):
        if target.resolve() == path.resolve():
            raise ValueError(f"out: {target} would overwrite the image itself")
    return targets


def progress_bar() -> Progress:
    """A progress bar on stderr, shown on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
