"""``dqcore encode``: photos to ``.dqc`` files, or a folder of images to the shards that a prior is trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from dqcore.cli.broken import end_with_broken, name_broken
from dqcore.cli.idle import say_idle
from dqcore.cli.naming import name_photos
from dqcore.cli.stopping import stoppable
from dqcore.cli.written import print_written, say_written
from dqcore.data.labels import labels_written
from dqcore.data.listing import is_collection
from dqcore.data.reading import allow_pixels
from dqcore.data.shards import ShardWriter, count_known
from dqcore.distributed import TIMEOUT, World, join_world
from dqcore.errors import InputError, at_least
from dqcore.files import sole_owner
from dqcore.inference.budget import Budget, budget_of
from dqcore.inference.codec import Codec, load_codec
from dqcore.inference.encode_shards import encode_images, hash_photos
from dqcore.inference.encode_streams import encode_photo, encode_photos
from dqcore.inference.stream_file import SUFFIX, Written, write_alone
from dqcore.inference.stream_folder import StreamFolder
from dqcore.models.weights import TOKENIZER, weights_folder
from dqcore.printing import say
from dqcore.progress import counted, progress_bar

__all__ = ["encode"]


def encode(
    photos: Annotated[tuple[Path, ...], Positional],
    *,
    checkpoint: Path | None = None,
    out: Path,
    format: Literal["auto", "dqc", "shards"] = "auto",
    ratio: float | None = None,
    num_codes: int | None = None,
    per_megapixel: bool = False,
    exact: bool = False,
    bytes: int | None = None,
    bpp: float | None = None,
    overwrite: bool = False,
    shard_size: int = 1000,
    batch_size: int = 8,
    max_pixels: int | None = None,
    device: str = "auto",
    timeout: float = TIMEOUT,
) -> None:
    """Encode photos to .dqc files, or a folder of images to shards of codes for the training of a prior.

    Images keep their size. Broken files are named and passed over; the exit code is then 2. A run that was killed goes
    on where it stopped; files are known by name and content. Under torchrun the processes share the photos.

    Args:
        photos: Image files, folders of images, searched recursively, .txt lists, archives (.tar, .zip, LMDB).
        checkpoint: Folder of a saved tokenizer or of a training run; by default the weights that come with dqcore.
        out: One photo's .dqc file; or a folder for the .dqc files or shards.
        format: dqc or shards; by default dqc for files and shards for folders.
        ratio: Share of fine regions in every image, in [0, 1]; by default the router decides.
        num_codes: Codes of every image, whatever its size, or a little less in whole regions; instead of ratio.
        per_megapixel: Take num_codes for a million pixels, so that large photos of a folder get more than small ones.
        exact: Refuse a photo that cannot have num_codes exactly, and name the nearest numbers.
        bytes: Size of every .dqc file, met from below; instead of ratio.
        bpp: Bits per pixel of every .dqc file, met from below; instead of ratio.
        overwrite: Let the .dqc file of one photo replace another stream. Other files are never replaced.
        shard_size: Images in a shard.
        batch_size: Images of one size that go through the model together, at most; for shards.
        max_pixels: Most pixels of an image; by default as many as fill a fortieth of the memory, at most 178 million.
        device: auto, cpu, cuda or cuda:N.
        timeout: Under torchrun, seconds to wait for a process that does not answer before the job ends.
    """
    _check_sizes(shard_size, batch_size)
    budget = budget_of(ratio, num_codes, per_megapixel, exact, bytes, bpp)
    named, alone = name_photos(photos), out.suffix.lower() == SUFFIX
    if alone and (len(named) != 1 or format == "shards"):
        raise InputError(f"out: {out} is one {SUFFIX} file, expected one photo, got {len(named)}; name a folder")
    kind = _format(format, photos, alone, bool(bytes or bpp or per_megapixel or exact))
    world = join_world(device, timeout)
    codec = load_codec(checkpoint or weights_folder(TOKENIZER), str(world.device))
    if alone:
        return _one(codec, named[0][1], out, budget, overwrite, max_pixels) if world.is_main else None
    streams = {"per_megapixel": per_megapixel, "bytes": bytes, "bpp": bpp} if kind == "dqc" else {}
    about = {**_description(codec), "ratio": ratio, "num_codes": num_codes, **streams}
    with allow_pixels(max_pixels), sole_owner(out, "encoding") if world.is_main else contextlib.nullcontext():
        job = _Job(codec, named, hash_photos(named, world), out, about, world)
        if kind == "shards":
            return _shards(job, shard_size, batch_size, ratio, num_codes)
        _streams(job, budget)


def _format(asked: str, photos: Sequence[Path], alone: bool, of_streams: bool) -> str:
    """``dqc`` or ``shards``, chosen if it was left open; ``of_streams``: some target is for streams alone."""
    kind = "shards" if not alone and any(map(is_collection, photos)) else "dqc"
    kind = kind if asked == "auto" else asked
    if kind == "shards" and of_streams:
        raise InputError("format: shards take ratio or num_codes alone; expected --format dqc with the other targets")
    return kind


@dataclass(frozen=True)
class _Job:
    """Photos to encode into a folder."""

    codec: Codec
    named: list[tuple[str, Path]]
    digests: dict[str, str]
    out: Path
    description: dict[str, Any]
    world: World


def _one(codec: Codec, path: Path, out: Path, budget: Budget, overwrite: bool, max_pixels: int | None) -> None:
    with allow_pixels(max_pixels):
        result = encode_photo(codec, path, budget)
    new = write_alone(out, result.data, overwrite=overwrite)
    say(f"{path}: {say_written(result)}: {out}{'' if new else ' (was there already, the same bytes)'}")
    say_idle("dqc", alone=True)


def _streams(job: _Job, budget: Budget) -> None:
    folder = StreamFolder(job.out, job.description) if job.world.is_main else None
    before = count_known(folder.index, job.digests, job.out) if folder else 0
    results: list[tuple[str, Written]] = []
    failures: list[str] = []
    with progress_bar() as bar, stoppable("encode", "photo") as check:
        task = bar.add_task("encode", total=len(job.named), completed=before)

        def written(name: str, result: Written) -> None:
            results.append((name, result))
            bar.advance(task)

        encode_photos(
            *(job.codec, job.named, folder, budget, job.digests),
            written=written,
            failed=failures.append,
            world=job.world,
            signals=check.signals,
        )
        check(before + len(results), len(job.named))
    if folder is None:
        return
    for reason in failures:
        say(f"not encoded: {reason}", error=True)
    print_written(results)
    _print_result(folder.index, job, before)
    say_idle("dqc")
    if failures:
        raise InputError(f"{len(failures)} of {len(job.named)} photos were not encoded, the first: {failures[0]}")
    _end(folder.index, job)


def _check_sizes(shard_size: int, batch_size: int) -> None:
    """Raise unless the sizes are in range. The header of a shard describes each image, so a shard has a limit."""
    at_least(1, shard_size=shard_size, batch_size=batch_size)
    if shard_size > 100_000:
        raise InputError(f"shard_size: expected at most 100,000, got {shard_size}")


def _shards(job: _Job, shard_size: int, batch_size: int, ratio: float | None, num_codes: int | None) -> None:
    writer = None
    if job.world.is_main:
        writer = ShardWriter(job.out, job.description, shard_size=shard_size, labels=labels_written(job.named))
    before = count_known(writer.index, job.digests, job.out) if writer else 0
    done = before
    with progress_bar() as bar, stoppable("encode", "batch") as check:
        task = bar.add_task("encode", total=len(job.named))

        def progress(finished: int) -> None:
            nonlocal done
            done = finished
            bar.update(task, completed=finished)

        encode_images(
            job.codec.model,
            job.named,
            writer,
            digests=job.digests,
            ratio=ratio,
            num_codes=num_codes,
            batch_size=batch_size,
            progress=progress,
            world=job.world,
            signals=check.signals,
        )
        check(done, len(job.named))
    if writer is not None:
        _print_result(writer.index, job, before)
        say_idle("shards", nothing_left=before == len(job.named))
        _end(writer.index, job)


def _description(codec: Codec) -> dict[str, Any]:
    config = codec.model.config
    return {
        "tokenizer": codec.identity,
        "model": type(codec.model).__name__,
        "strides": list(config.strides),
        "codebook_size": config.codebook_size,
    }


def _print_result(index: dict[str, Any], job: _Job, before: int) -> None:
    images, broken = index["images"], index["broken"]
    name_broken([file["reason"] for file in broken])
    if broken and not images:
        raise InputError(f"photos: none of these {len(job.named)} can be read, the first: {broken[0]['reason']}")
    codes = sum(image["num_codes"] for image in images)
    mean = f", {codes / len(images):.1f} codes per image" if images else ""
    there = f" {before} of these {len(job.named)} files were there already." if before else ""
    if before == len(job.named) == 1:
        there = " It was there already."
    passed = f"{counted(len(broken), 'broken file')} passed over"
    say(f"{counted(len(images), 'image')}{mean}, {passed}; codes in {job.out}.{there}")


def _end(index: dict[str, Any], job: _Job) -> None:
    """Raise if some of these photos could not be read; the index also has those of earlier calls."""
    mine = {name for name, _ in job.named}
    broken = [file["reason"] for file in index["broken"] if file["name"] in mine]
    end_with_broken("photos", broken, len(job.named))
