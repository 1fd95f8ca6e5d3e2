"""Images from a trained prior and its tokenizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.data.images import tensor_to_image
from dqcore.data.pictures import check_targets, is_ours, write_picture
from dqcore.models.auto import PRIORS, TOKENIZERS, check_belongs, fingerprint, load_saved, model_folder
from dqcore.models.priors.base import Prior
from dqcore.models.sampling.settings import Sampling
from dqcore.ops.unpack_codes import unpack_codes

__all__ = ["Samples", "decode_preview", "decode_sequence", "image_grid", "load_pair", "preview_maps", "write_samples"]

#: Samples drawn before they are decoded and written. Slots are idle only while the last of them are drawn.
CHUNK = 8192


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
    """Load a saved prior and the tokenizer it belongs to, by default the one saved with it; both in evaluation mode.

    Raises:
        FileNotFoundError: One of them is missing.
        InputError: They do not belong together.
    """
    folder = model_folder(prior)
    model = load_saved(folder, PRIORS)
    where = folder / "tokenizer" if tokenizer is None else tokenizer
    if tokenizer is None and not where.is_dir():
        raise FileNotFoundError(f"{prior}: no tokenizer was saved with this prior; name the one it was trained with")
    decoder = load_saved(where, TOKENIZERS)
    check_belongs(model, decoder, fingerprint(where))
    return model.to(device), decoder.to(device)


@torch.no_grad()
def decode_sequence(tokenizer: Any, sequence: CodeSequence, batch_size: int = 16) -> Tensor:
    """Images ``(B, 3, H, W)`` of a sequence that covers all regions, ``batch_size`` of them decoded at once."""
    codes, grain = unpack_codes(sequence)
    parts = zip(codes.split(batch_size), grain.split(batch_size), strict=True)
    return torch.cat([tokenizer.decode(some, where) for some, where in parts])


@torch.no_grad()
def decode_preview(tokenizer: Any, sequence: CodeSequence) -> Tensor:
    """Images ``(B, 3, H, W)`` of a sequence that covers only some regions; the other regions are light grey."""
    hole = tokenizer.config.codebook_size
    codes = preview_maps(sequence, hole)
    images = tokenizer.decode(codes)
    stride = images.shape[-1] // codes.shape[-1]
    holes = (codes == hole).repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return images.masked_fill(holes[:, None], 0.8)


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
    **settings: Any,
) -> Samples:
    """Draw, decode and write images: ``out/00000.png``, ... and ``out/grid.png`` with the first 64.

    Samples that an earlier call left in the folder are replaced or removed; other files are left alone.

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
        progress: Called with the number of drawn samples and the number of all.
        written: Called after each batch with the number of images written so far; what it raises ends the work.
        **settings: Fields of ``sampling`` to set otherwise, such as ``guidance=2.0``.

    Raises:
        InputError: A file of such a name is there already, and dqcore did not make it.
    """
    sampling = replace(sampling or Sampling(), **settings)
    paths = [out / f"{_prefix(names, index)}{index:05d}.png" for index in range(count)]
    check_targets([*paths, out / "grid.png"])
    number, seconds = 0, 0.0
    shown: list[Tensor] = []
    for first in range(0, count, CHUNK):
        size = min(CHUNK, count - first)
        some = labels[first : first + size] if isinstance(labels, Tensor) else labels
        start = time.perf_counter()
        report = None if progress is None else _offset(progress, first, count)
        sequence = prior.sample(size, some, sampling, seed=seed, first=first, slots=slots, progress=report)
        for begin in range(0, size, batch_size):
            images = decode_sequence(tokenizer, sequence[begin : begin + batch_size], batch_size).clamp(-1, 1).cpu()
            seconds += time.perf_counter() - start
            for image in images:
                write_picture(paths[number], tensor_to_image(image), "sample")
                number += 1
            shown += images[: max(0, 64 - len(shown))]
            if written is not None and number < count:
                written(number)
            start = time.perf_counter()
    write_picture(out / "grid.png", tensor_to_image(image_grid(torch.stack(shown))), "sample")
    return Samples(paths, out / "grid.png", count / seconds, _remove_stale(out, {*paths, out / "grid.png"}))


def _prefix(names: Sequence[str] | None, index: int) -> str:
    """What a file's name begins with; a class may be a path of folders."""
    return "" if names is None else f"{names[index].replace('/', '-')}-"


def _remove_stale(out: Path, fresh: set[Path]) -> int:
    """Remove the samples of earlier calls, and say how many there were."""
    stale = [path for path in out.glob("*.png") if path not in fresh and is_ours(path, "sample")]
    for path in stale:
        path.unlink()
    return len(stale)


def _offset(progress: Callable[[int, int], object], first: int, count: int) -> Callable[[int, int], object]:
    """``progress`` for a chunk that begins with sample ``first`` of ``count``."""
    return lambda done, _: progress(first + done, count)
