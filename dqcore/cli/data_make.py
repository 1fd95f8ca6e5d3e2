"""``dqcore data make``: a data set from another, resized, cropped, packed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from dqcore.cli.broken import name_broken
from dqcore.cli.stopping import stoppable
from dqcore.data.batches import item_loader
from dqcore.data.labels import image_labels
from dqcore.data.listing import image_name, list_images, source_root
from dqcore.data.made import DataWriter
from dqcore.data.making import MadeImages, Making, new_names
from dqcore.data.reading import allow_pixels
from dqcore.data.shards import count_known, file_digest
from dqcore.errors import InputError, at_least
from dqcore.files import sole_owner
from dqcore.printing import say
from dqcore.progress import counted, progress_bar

__all__ = ["data_make"]


def data_make(
    source: Annotated[Path, Positional],
    *,
    out: Path,
    packing: Literal["folder", "tar"] = "folder",
    size: int | None = None,
    crop: Literal["center", "random", "none"] = "center",
    resize: int | None = None,
    crops: int = 1,
    encoding: Literal["png", "jpeg", "webp"] = "png",
    quality: int = 95,
    classes: bool = False,
    shard_size: int = 1000,
    seed: int = 0,
    max_pixels: int | None = None,
    workers: int = 0,
) -> None:
    """Make a data set from another: crops at one size, or the same files, in a folder or in .tar shards.

    Broken files are left out and named. A run that was stopped goes on where it was; a file that something else made is
    never replaced.

    Args:
        source: Folder of images, searched recursively, .txt list of their paths, .tar or .zip file, LMDB database, or
            folder of such archives.
        out: Folder of the new data set.
        packing: folder: image files; tar: shards that webdataset reads too.
        size: Height and width of a crop in pixels; by default files stay as they are.
        crop: center or random, a square of size; none, the whole image with its shorter side at size.
        resize: Pixels of the shorter side before a crop is cut; by default size. Random crops enlarge no image.
        crops: Random crops of each image.
        encoding: Format of the crops' files.
        quality: Quality of JPEG and WebP, 1 to 100.
        classes: With --packing tar: write the number of an image's class beside it (.cls), by its folder's name.
        shard_size: Images in a shard.
        seed: Decides the random crops.
        max_pixels: Most pixels of an image; by default as many as fill a fortieth of the memory, at most 178 million.
        workers: Processes that read and write.
    """
    making = Making(size, crop, resize, crops, encoding, quality, seed)
    at_least(1, shard_size=shard_size)
    at_least(0, workers=workers)
    if classes and packing != "tar":
        raise InputError("classes: expected none with --packing folder, where folders are the classes")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"out: {out} lies in {source}, whose images it would then be among; choose another folder")
    paths, root = list_images(source), source_root(source)
    names = [image_name(path, root) for path in paths]
    targets = new_names(names, whole=size is None, dots=packing == "folder")
    labels, class_names = image_labels(paths, names, classes)
    about = dataclasses.asdict(making) | {"classes": list(class_names)}
    with allow_pixels(max_pixels), sole_owner(out, "making a data set"):
        writer = DataWriter(out, about, packing, shard_size)
        done = writer.done
        known = {name: file_digest(path) for name, path in zip(names, paths, strict=True) if name in done}
        before = count_known(writer.index, known, out, "images")
        images = [(name, path) for name, path in zip(names, paths, strict=True) if name not in done]
        label_of = dict(zip(names, labels, strict=True)) if classes else {}
        _make(MadeImages(images, making, targets, label_of), writer, before, workers)
    _print_result(writer, before, out, making.crops)


def _make(images: MadeImages, writer: DataWriter, before: int, workers: int) -> None:
    total = before + len(images)
    try:
        with progress_bar() as bar, stoppable("data make", "image") as check:
            task = bar.add_task("make", total=total, completed=before)
            for number, made in enumerate(item_loader(images, workers), before + 1):
                writer.add(made)
                bar.update(task, completed=number)
                check(number, total)
    finally:
        writer.flush()  # also after an error: what was made is kept


def _print_result(writer: DataWriter, before: int, out: Path, crops: int) -> None:
    images, broken = writer.index["images"], writer.index["broken"]
    name_broken([file["reason"] for file in broken])
    there = f" {before} images were there already." if before else ""
    shards = len({entry["shard"] for entry in images if "shard" in entry})
    cut = f" as {len(images) * crops} crops" if crops > 1 else ""
    packed = f" in {counted(shards, 'shard')}" if shards else ""
    say(f"{counted(len(images), 'image')}{cut}{packed}, {counted(len(broken), 'broken file')} left out: {out}.{there}")
