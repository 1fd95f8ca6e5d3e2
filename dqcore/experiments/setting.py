"""Where the experiments run: the scale, the photos, the folder of the results, and what is noted beside each number."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dqcore.data.images import BrokenImageError, list_images, read_image
from dqcore.data.listing import spread
from dqcore.data.photos import sample_folder
from dqcore.data.provenance import hash_file
from dqcore.errors import InputError
from dqcore.experiments.arms import Arm
from dqcore.experiments.scales import Scale
from dqcore.files import write_atomically
from dqcore.files.checkout import checked_out_commit
from dqcore.inference.photos import LEAST_SIDE
from dqcore.progress import counted

__all__ = ["Photos", "Setting", "find_photos", "versions"]


@dataclass(frozen=True)
class Photos:
    """Photos of the experiments.

    Attributes:
        name: What they are called in the report.
        train: Folder to train on.
        validation: Photos of the validation curves.
        test: Photos that everything is measured on.
        hash: Of all files, by :func:`dqcore.data.provenance.hash_file`.
    """

    name: str
    train: Path
    validation: tuple[Path, ...]
    test: tuple[Path, ...]
    hash: str


@dataclass(frozen=True)
class Setting:
    """What all arms have in common.

    Attributes:
        scale: Networks and steps.
        photos: What they are trained and measured on.
        out: Folder of the results; the trained models lie in ``out/runs``.
        minutes: Minutes of each run by the clock, instead of the scale's steps.
        made_by: Versions and commit, see :func:`versions`.
    """

    scale: Scale
    photos: Photos
    out: Path
    minutes: float | None
    made_by: dict[str, Any]

    def run_folder(self, arm: Arm) -> Path:
        """Folder of an arm's training run."""
        return self.out / "runs" / arm.key

    def result_file(self, experiment: str, arm: Arm) -> Path:
        """The JSON of an arm in an experiment."""
        return self.out / experiment / f"{arm.key}.json"

    def described(self, arm: Arm) -> dict[str, Any]:
        """What a stored result must have in common with an arm to stand for it."""
        length = {} if self.minutes is None else {"minutes": self.minutes}
        about = arm.as_json()
        if length:
            about["options"] = {name: value for name, value in about["options"].items() if name != "steps"} | length
        return {"scale": self.scale.name, "data": self.photos.hash, **about}

    def validation_list(self) -> Path:
        """A ``.txt`` list of the validation photos, in ``out``; it is written if it is not there."""
        path = self.out / "validation.txt"
        text = os.fsencode("".join(f"{photo.resolve()}\n" for photo in self.photos.validation))
        if not path.is_file() or path.read_bytes() != text:
            write_atomically(path, lambda file: file.write(text))
        return path


def find_photos(data: Path | None, test: Path | None, scale: Scale) -> Photos:
    """The photos of a folder, or those that come with the package.

    Args:
        data: Folder with ``train`` and ``val``; None for the packaged sample.
        test: Folder or ``.txt`` list of photos to measure on; None for those of ``val``.
        scale: Says how many are validated and measured on.

    Raises:
        InputError: The folder has no ``train`` or ``val``, a path has a line break, or photos to measure on are in
            ``train``, cannot be read or are too small.
        FileNotFoundError: A folder does not exist.
    """
    train, val = sample_folder("train"), sample_folder("heldout")
    name = "the packaged sample"
    if data is not None:
        train, val, name = data / "train", data / "val", data.resolve().name
        if not train.is_dir() or not val.is_dir():
            raise InputError(f"data: expected a folder with train/ and val/, got {data}")
    held_out = list_images(val)
    measured = held_out if test is None else list_images(test)
    if test is not None:
        name += f", measured on {test.resolve().name}"
    chosen = spread(held_out, scale.validation_photos), spread(measured, scale.test_photos)
    for photo in chosen[0]:
        if len(os.fsencode(photo.resolve()).splitlines()) > 1:  # they are handed on in a list
            raise InputError(f"data: expected paths without line breaks, got {str(photo.resolve())!r}")
    _check_measurable("data", chosen[0])
    _check_measurable("data" if test is None else "test", chosen[1])
    hashes = [[hash_file(path) for path in paths] for paths in (list_images(train), *chosen)]
    trained = set(hashes[0])
    if seen := [path for path, found in zip(chosen[1], hashes[2], strict=True) if found in trained]:
        which = f"{len(seen)} of the {counted(len(chosen[1]), 'photo')} to measure on"
        raise InputError(f"{'data' if test is None else 'test'}: {which} are in {train} too, such as {seen[0]}")
    digest = hashlib.sha256("".join(itertools.chain(*hashes)).encode())
    return Photos(name, train, *chosen, digest.hexdigest()[:16])


def _check_measurable(argument: str, photos: Iterable[Path]) -> None:
    """Refuse photos that no arm could be measured on, before one is trained for hours."""
    for photo in photos:
        try:
            width, height = read_image(photo).size
        except BrokenImageError as error:
            raise InputError(f"{argument}: a photo to measure on cannot be read: {error}") from error
        if min(width, height) < LEAST_SIDE:
            expected = f"photos to measure on of at least {LEAST_SIDE} pixels a side"
            raise InputError(f"{argument}: expected {expected}, {photo} has {width}x{height}")


def versions() -> dict[str, Any]:
    """What makes the numbers: versions, the commit of a source tree (``+``: it was changed), the machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "dqcore": importlib.metadata.version("dqcore"),
        "commit": checked_out_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": gpu or platform.machine(),
    }
