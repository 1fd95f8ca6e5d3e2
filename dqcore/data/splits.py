"""Training and validation images: by the lists that FFHQ and CelebA-HQ come with, else by a hash of each name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dqcore.data.listing import read_lines, source_root, split_images
from dqcore.errors import InputError

__all__ = ["LISTS", "Split", "least_held_out", "listed_split", "training_split"]

log = logging.getLogger(__name__)

#: The lists that go round with VQGAN's code: a file name a line, such as ``00000.png``.
LISTS = (("ffhqtrain.txt", "ffhqvalidation.txt"), ("celebahqtrain.txt", "celebahqvalidation.txt"))


class Split(NamedTuple):
    """Training and validation images, each in the order of its list."""

    training: list[Path]
    validation: list[Path]


def listed_split(source: Path, paths: Sequence[Path]) -> Split | None:
    """The split of a data set that has its lists in its folder or beside it.

    A line names an image by its file's name without the ending, wherever in the source it lies: a data set that was
    saved in another format or other folders keeps its split.

    Args:
        source: The data set.
        paths: Its images.

    Returns:
        The split, or None where there are no lists of these images.

    Raises:
        InputError: A list names an image that is not there, or two images of the source are called the same.
    """
    for folder in (source, source.parent):
        for names in LISTS:
            training, validation = (folder / name for name in names)
            if training.is_file() and validation.is_file():
                by_stem = {Path(path.name.rpartition("::")[2]).stem: path for path in paths}
                if _stem(read_lines(training)[:1]) not in by_stem:
                    continue  # the lists of another data set beside this one
                if len(by_stem) < len(paths):
                    raise InputError(f"{source}: two images have one name, its lists do not tell which they mean")
                return _split(training, validation, by_stem)
    return None


def least_held_out(count: int) -> int:
    """How many of a data set's images are held out at least: 4, or a tenth where that is fewer, or 1.

    A number measured on one photo says more of the photo than of the model.
    """
    return max(1, min(4, count // 10))


def training_split(source: Path, paths: Sequence[Path], share: float, at_least: int | None = None) -> Split:
    """The training and validation images of a run: by the data set's own lists, else by a hash of each name.

    Args:
        source: The data set.
        paths: Its images.
        share: Share to hold out where there are no lists; 0 holds out none, whatever there is.
        at_least: Hold out at least this many; by default :func:`least_held_out`. A run that goes on, or is shown, names
            how many it held out, so that its split stays what it was.

    Raises:
        InputError: The lists do not fit, or the share leaves no image to train on.
    """
    if not share:
        return Split(list(paths), [])
    least = least_held_out(len(paths)) if at_least is None else at_least
    return listed_split(source, paths) or Split(*split_images(paths, share, root=source_root(source), at_least=least))


def _split(training: Path, validation: Path, by_stem: dict[str, Path]) -> Split:
    found = Split(_listed(training, by_stem), _listed(validation, by_stem))
    if shared := set(found.training) & set(found.validation):
        raise InputError(f"{validation}: {len(shared)} images stand in {training.name} too, such as {min(shared)}")
    left = len(by_stem) - len(found.training) - len(found.validation)
    log.info("split by %s and %s%s", training, validation.name, f"; {left} images stand in neither" if left else "")
    return found


def _listed(path: Path, by_stem: dict[str, Path]) -> list[Path]:
    stems = [Path(line).stem for line in read_lines(path)]
    missing = [stem for stem in stems if stem not in by_stem]
    if missing:
        raise InputError(f"{path}: {len(missing)} of its {len(stems)} images are not there, such as {missing[0]}")
    return [by_stem[stem] for stem in dict.fromkeys(stems)]


def _stem(lines: Sequence[str]) -> str:
    return Path(lines[0]).stem if lines else ""
