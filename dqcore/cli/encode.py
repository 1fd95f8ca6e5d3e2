"""``dqcore encode``: a folder of images to codes on disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from dqcore.data.images import list_images
from dqcore.data.shards import ShardWriter
from dqcore.errors import InputError
from dqcore.inference.encode import encode_images
from dqcore.inference.load import load_tokenizer
from dqcore.models.auto import fingerprint
from dqcore.progress import progress_bar

__all__ = ["encode"]


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

    Images keep their size and are padded to multiples of the coarsest stride. Broken files are counted and named. A
    run that was killed goes on after the last shard it wrote.

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
    if min(shard_size, batch_size) < 1:
        raise InputError("shard_size, batch_size: expected at least 1")
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
    _print_result(writer.index, out)


def _print_result(index: dict[str, Any], out: Path) -> None:
    images, broken = index["images"], index["broken"]
    for file in broken:
        print(f"broken: {file['reason']}", file=sys.stderr)
    codes = sum(image["num_codes"] for image in images)
    mean = f", {codes / len(images):.1f} codes per image" if images else ""
    print(f"{len(images)} images{mean}, {len(broken)} broken files passed over; codes in {out}")


def _name(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()
