"""Images from a trained prior and its tokenizer."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.data.images import tensor_to_image
from dqcore.distributed import ALONE, World
from dqcore.errors import at_least, whole_given
from dqcore.files.pictures import check_targets, is_ours, write_picture
from dqcore.inference.decode import decode_open
from dqcore.models.auto import PRIORS, TOKENIZERS, check_belongs, fingerprint, load_identified, load_saved, model_folder
from dqcore.models.priors.base import Prior
from dqcore.models.sampling.settings import Sampling
from dqcore.models.weights import TOKENIZER, weights_folder
from dqcore.ops.unpack_codes import unpack_codes

__all__ = ["Samples", "decode_preview", "decode_sequence", "image_grid", "load_pair", "preview_maps", "write_samples"]

#: Samples that a process draws before they are decoded and written. Slots idle only while the last of them are drawn.
CHUNK = 8192
#: What samples are called, and the picture of the first ones.
_NAME = re.compile(r"(.+-)?\d{5,}\.png|grid\.png", re.DOTALL)
#: Value of regions that are still open: light grey.
OPEN = 0.8


@dataclass(frozen=True)
class Samples:
    """What :func:`write_samples` did.

    Attributes:
        paths: The images' files.
        grid: The file that shows the first of them together.
        images_per_second: Images drawn and decoded each second; the time of writing is left out.
        removed: How many samples of an earlier call, which these do not replace, were removed from the folder.
    """

    paths: list[Path]
    grid: Path
    images_per_second: float
    removed: int = 0


def load_pair(prior: Path, tokenizer: Path | None = None, device: torch.device | str = "cpu") -> tuple[Any, Any]:
    """Load a saved prior and the tokenizer it belongs to, both in evaluation mode.

    Args:
        prior: Folder of a saved prior or of its run.
        tokenizer: Folder of a tokenizer; by default the one saved with the prior, or the one that comes with the
            package if the prior belongs to that.
        device: Where they go.

    Raises:
        FileNotFoundError: One of them is missing.
        InputError: They do not belong together.
    """
    folder = model_folder(prior)
    model = load_saved(folder, PRIORS)
    where = _tokenizer_beside(folder, model) if tokenizer is None else tokenizer
    decoder, identity = load_identified(where, TOKENIZERS)
    check_belongs(model, decoder, identity)
    return model.to(device), decoder.to(device)


def _tokenizer_beside(folder: Path, prior: Any) -> Path:
    """The folder of the tokenizer that a saved prior belongs to."""
    if (folder / "tokenizer").is_dir():
        return folder / "tokenizer"
    packaged = weights_folder(TOKENIZER)
    if prior.config.tokenizer and prior.config.tokenizer == fingerprint(packaged):
        return packaged
    raise FileNotFoundError(f"{folder}: no tokenizer was saved with this prior; name the one it was trained with")


@torch.no_grad()
def decode_sequence(tokenizer: Any, sequence: CodeSequence, batch_size: int = 16) -> Tensor:
    """Images ``(B, 3, H, W)`` of a sequence that covers all regions, ``batch_size`` of them decoded at once."""
    whole_given(1, batch_size=batch_size)
    parts = zip(*(maps.split(min(int(batch_size), 1 << 31)) for maps in unpack_codes(sequence)), strict=True)
    return torch.cat([tokenizer.decode(some, where) for some, where in parts])


@torch.no_grad()
def decode_preview(tokenizer: Any, sequence: CodeSequence) -> Tensor:
    """Images ``(B, 3, H, W)`` of a sequence that covers only some regions; the other regions are light grey."""
    hole = tokenizer.config.codebook_size
    codes = preview_maps(sequence, hole)
    images = decode_open(tokenizer, codes)
    stride = images.shape[-1] // codes.shape[-1]
    holes = (codes == hole).repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return images.masked_fill(holes[:, None], OPEN)


def preview_maps(sequence: CodeSequence, hole: int) -> Tensor:
    """Code maps ``(B, H, W)`` of a sequence that covers only some regions, with ``hole`` in the others.

    A tokenizer's ``decode`` knows a hole by the code ``K``, its codebook's size.
    """
    rows, columns = sequence.region_grid
    shift = sequence.num_granularities - 1
    codes = torch.full((len(sequence), rows << shift, columns << shift), hole, device=sequence.device)
    images = torch.arange(len(sequence), device=sequence.device).repeat_interleave(sequence.lengths.long())
    for g in range(sequence.num_granularities):
        mine, side = sequence.grains == g, 1 << shift - g
        blocks = codes.view(len(codes), rows << g, side, columns << g, side)
        y, x = sequence.positions[mine] // (columns << g), sequence.positions[mine] % (columns << g)
        blocks[images[mine], y, :, x] = sequence.codes[mine, None, None]
    return codes


def image_grid(images: Tensor, columns: int = 8, gap: int = 2) -> Tensor:
    """Images ``(B, 3, H, W)`` side by side, ``(3, height, width)``, with white gaps of ``gap`` pixels."""
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for index, image in enumerate(images.cpu()):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        grid[:, y : y + height, x : x + width] = image
    return grid


def write_samples(
    prior: Prior,
    tokenizer: Any,
    out: Path,
    count: int,
    *,
    labels: Tensor | int | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    slots: int | None = None,
    batch_size: int = 16,
    names: Sequence[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
    written: Callable[[int], object] | None = None,
    world: World = ALONE,
    **settings: Any,
) -> Samples:
    """Draw, decode and write images: ``out/00000.png``, ... and ``out/grid.png`` with the first 64.

    Samples that an earlier call left in the folder are removed before the first is written; other files are left alone.

    Args:
        prior: A prior, in evaluation mode.
        tokenizer: The tokenizer it belongs to.
        out: Folder, made if it is missing.
        count: Number of images.
        labels: As in ``prior.sample``.
        sampling: How to draw.
        seed: Image i depends on the seed and on i alone.
        slots: Number of samples drawn at once.
        batch_size: Images decoded together.
        names: What the file of each sample is to be called before its number, such as its class: ``cat-00007.png``.
        progress: Called with the number of drawn samples and the number of all, those of this process.
        written: Called after each batch with how many images this process has written; what it raises ends the work.
        world: The processes that share the images, in whole batches; every one calls this.
        **settings: Fields of ``sampling`` to set otherwise, such as ``guidance=2.0``.

    Raises:
        InputError: Too low a number, too few names, or a file of such a name is there and dqcore did not make it.
    """
    mine = _part(count, batch_size, world)
    at_least(count, names=None if names is None else len(names))
    sampling = replace(sampling or Sampling(), **settings)
    paths, grid = [out / f"{_prefix(names, index)}{index:05d}.png" for index in range(count)], out / "grid.png"
    if world.is_main:
        check_targets([*paths, grid])
    removed = _remove_earlier(out, {*paths, grid}) if world.is_main else 0
    world.barrier()
    seconds, start = 0.0, time.perf_counter()
    shown, draw = list[Tensor](), functools.partial(prior.sample, sampling=sampling, seed=seed, slots=slots)
    for number, images in _drawn(draw, tokenizer, mine, batch_size, labels, progress):
        seconds += time.perf_counter() - start
        for path, image in zip(paths[number : number + len(images)], images, strict=True):
            write_picture(path, tensor_to_image(image), "sample")
        shown += images[: max(0, 64 - number)]
        if written is not None and number + len(images) < mine.stop:
            written(number + len(images) - mine.start)
        start = time.perf_counter()
    _write_grid(grid, shown, world)
    return Samples(paths, grid, count / max(world.gather(seconds)), removed)


def _part(count: int, batch_size: int, world: World) -> range:
    """The samples of this process: whole batches, so that the images do not depend on the number of processes."""
    whole_given(1, count=count, batch_size=batch_size)
    batches = -(-count // batch_size)
    first, stop = (batches * rank // world.size * batch_size for rank in (world.rank, world.rank + 1))
    return range(first, min(stop, count))


def _drawn(
    draw: Callable[..., CodeSequence],
    tokenizer: Any,
    mine: range,
    batch_size: int,
    labels: Tensor | int | None,
    progress: Callable[[int, int], object] | None,
) -> Iterator[tuple[int, Tensor]]:
    """Batches of what ``draw`` (``prior.sample``) gives, decoded, in [-1, 1] on the CPU; each after its first index."""
    for first in range(mine.start, mine.stop, CHUNK):
        size = min(CHUNK, mine.stop - first)
        some = labels[first : first + size] if isinstance(labels, Tensor) else labels
        report = None if progress is None else _offset(progress, first - mine.start, len(mine))
        sequence = draw(size, some, first=first, progress=report)
        for begin in range(0, size, batch_size):
            part = sequence[begin : begin + batch_size]
            yield first + begin, decode_sequence(tokenizer, part, batch_size).clamp(-1, 1).cpu()


def _write_grid(grid: Path, shown: list[Tensor], world: World) -> None:
    """The first process writes the pictures of all."""
    shown = [image for part in world.gather_first(shown) for image in part]
    if world.is_main:
        write_picture(grid, tensor_to_image(image_grid(torch.stack(shown))), "sample")


def _prefix(names: Sequence[str] | None, index: int) -> str:
    """What a file's name begins with; a class may be a path of folders."""
    return "" if names is None else f"{names[index].replace('/', '-')}-"


def _remove_earlier(out: Path, fresh: set[Path]) -> int:
    """Remove the samples of earlier calls; returns how many are not in ``fresh``, which are written anew.

    All go before the first new one comes: if this call is killed, no two sets are mixed. A picture that somebody gave
    another name stays.
    """
    earlier = [path for path in out.glob("*.png") if _NAME.fullmatch(path.name) and is_ours(path, "sample")]
    for path in earlier:
        path.unlink()
    return len({*earlier} - fresh)


def _offset(progress: Callable[[int, int], object], first: int, count: int) -> Callable[[int, int], object]:
    """``progress`` for a chunk that begins with sample ``first`` of ``count``."""
    return lambda done, _: progress(first + done, count)
