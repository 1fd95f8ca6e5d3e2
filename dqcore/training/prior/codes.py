"""The codes that a prior is trained on: read from a folder, or made from images once and kept in the run's folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from dqcore.data.batches import MEMORY_LIMIT, Crops
from dqcore.data.codes import CachedCodes, read_codes
from dqcore.data.crops import CenterCrop
from dqcore.data.images import BrokenImageError, image_to_uint8, readable_images, uint8_to_float
from dqcore.data.labels import image_labels
from dqcore.data.listing import image_name, list_images, source_root
from dqcore.data.preprocessing import CROPS, crop_of
from dqcore.data.provenance import LIMIT, hash_file
from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.files import write_atomically
from dqcore.models.auto import TOKENIZERS, check_identity, fingerprint, load_saved, model_folder, saved_files
from dqcore.training.prior.options import PriorTraining
from dqcore.training.state import read_state, write_state

__all__ = ["keep_tokenizer", "kept_tokenizer", "training_codes"]

log = logging.getLogger(__name__)

CACHE = "codes.pt"
_NEEDED = ("config.json", "model.safetensors")


def training_codes(options: PriorTraining, world: World) -> CachedCodes:
    """The codes that the options ask for. Every process calls this; the main one makes them, the others wait for it.

    The tokenizer is the one beside the prior, where :func:`keep_tokenizer` has put it.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: Images differ in size, or codes were made by another tokenizer than the one given.
    """
    tokenizer = None if options.tokenizer is None else kept_tokenizer(options)
    identity = "" if tokenizer is None else fingerprint(tokenizer)
    if options.codes is not None:
        codes = read_codes(options.codes, classes=options.classes)
        made_by = codes.tokenizer or "unknown"
        check_identity(f"the codes in {options.codes} were made by", made_by, identity, str(options.tokenizer))
        return codes
    if not world.is_main:
        world.barrier()
    codes = _kept_or_made(options, world, tokenizer, identity)
    if world.is_main:
        world.barrier()
    return codes


def kept_tokenizer(options: PriorTraining) -> Path:
    """Where the copy of the tokenizer lies."""
    return options.out / "model" / "tokenizer"


def keep_tokenizer(options: PriorTraining) -> None:
    """Copy the tokenizer's files beside the prior, at the start of a run: it may be saved anew or deleted meanwhile.

    Their bytes stay the same, and so does its fingerprint. A resumed run goes on with the copy that it has.
    """
    folder = kept_tokenizer(options)
    if options.tokenizer is None or (options.resume and all((folder / name).is_file() for name in _NEEDED)):
        return
    for file in (*saved_files(options.tokenizer), *model_folder(options.tokenizer).glob("code_tables*.safetensors")):
        write_atomically(folder / file.name, functools.partial(_write, file.read_bytes()))


def _write(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


def _kept_or_made(options: PriorTraining, world: World, tokenizer: Path | None, identity: str) -> CachedCodes:
    """The codes in the run's folder, if they were made from the same images in the same way; else new ones.

    A run that goes on keeps its codes. A new one makes them again if a file could not be read or has changed since.
    """
    assert options.data is not None and tokenizer is not None and options.views is not None
    paths = list_images(options.data)
    names = [image_name(path, source_root(options.data)) for path in paths]
    what: tuple[Any, ...] = (identity, names, options.image_size, options.resize, options.views, options.seed)
    what += (options.classes, options.preprocessing) if options.preprocessing else (options.classes,)
    made_of = hashlib.sha256(repr(what).encode()).hexdigest()
    new = world.is_main and not options.resume
    contents = hashlib.sha256(repr(_hashes(paths)).encode()).hexdigest() if world.is_main else ""
    cache = options.out / CACHE
    if cache.is_file():
        state = read_state(cache)
        changed = bool(state.get("broken")) or state.get("contents", contents) != contents
        if state.get("made_of") == made_of and not (new and changed):
            return CachedCodes.of_state(state)
    log.info("encoding %d crops of %d images", options.views * len(paths), len(paths))
    encoded = _Encoder(options, load_saved(tokenizer, TOKENIZERS).to(world.device), world.device)
    name_of = dict(zip(paths, names, strict=True))
    labels, classes = image_labels(paths, names, options.classes)
    label_of = dict(zip(names, labels, strict=True))
    codes = CachedCodes.of_maps(
        encoded.maps(paths),
        [],  # known when it is known which files can be read
        num_granularities=encoded.tokenizer.config.num_granularities,
        codebook_size=encoded.tokenizer.config.codebook_size,
        tokenizer=identity,
        classes=classes,
    )
    for reason in encoded.broken:
        log.warning("left out: %s", reason)
    good = [name_of[path] for path in encoded.good]
    labels_of_good = torch.tensor([label_of[name] for name in good] * options.views, dtype=torch.int64)
    codes = dataclasses.replace(codes, labels=labels_of_good, names=tuple(good))
    if world.is_main:
        write_state(cache, codes.to_state() | {"made_of": made_of, "contents": contents, "broken": encoded.broken})
    return codes


class _Encoder:
    """Encodes the crops of images, and knows which files they came from.

    Attributes:
        good: The files that could be read, in their order.
        broken: Why each of the others could not.
    """

    def __init__(self, options: PriorTraining, tokenizer: Any, device: torch.device) -> None:
        self.options, self.tokenizer, self.device = options, tokenizer.eval(), device
        self.good: list[Path] = []
        self.broken: list[str] = []

    @torch.no_grad()
    def maps(self, paths: Sequence[Path]) -> Iterator[tuple[Tensor, Tensor]]:
        """Code maps ``(B, H, W)`` and grain maps ``(B, h, w)``: of all images in their first view, then in the next.

        Raises:
            InputError: No file can be read, or one could be for its first view and cannot be any more.
        """
        options = self.options
        assert options.image_size is not None and options.views is not None
        resize, stride = options.resize or options.image_size, self.tokenizer.config.strides[0]
        if options.image_size % stride:
            raise InputError(
                f"image_size: expected a multiple of {stride}, the tokenizer's stride, got {options.image_size}"
            )
        central = Crops(paths, CenterCrop(options.image_size, resize), seed=options.seed)
        yield from self._batches(self._first_view(central))
        if not self.good:
            raise InputError(f"data: none of its {len(paths)} images can be read, the first: {self.broken[0]}")
        kind = CROPS[options.preprocessing] if options.preprocessing else "random"
        random = Crops(self.good, crop_of(kind, options.image_size, resize), seed=options.seed, keep=MEMORY_LIMIT // 4)
        for view in range(1, options.views):
            yield from self._batches(self._later_view(random, view))

    def _first_view(self, crops: Crops) -> Iterator[Tensor]:
        for path, image in readable_images(crops.paths, lambda _, reason: self.broken.append(reason), read=crops.read):
            self.good.append(path)
            yield image_to_uint8(image)

    def _later_view(self, crops: Crops, view: int) -> Iterator[Tensor]:
        """Random crops of the good images; another in the place of one would have its label and its place."""
        for index, path in enumerate(crops.paths):
            sample = crops[view, index]
            if sample.broken:
                raise BrokenImageError(f"{path}: could be read before, and now: {sample.broken[0]}")
            yield sample.image

    def _batches(self, images: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        while batch := list(itertools.islice(images, self.options.encode_batch)):
            encoding = self.tokenizer.encode(uint8_to_float(torch.stack(batch).to(self.device)))
            yield encoding.codes, encoding.grain


def _hashes(paths: Sequence[Path]) -> list[str]:
    """What each file holds, as far as it can be read; of very many files their sizes."""
    found = []
    for path in paths:
        try:
            found.append(hash_file(path) if len(paths) <= LIMIT else str(path.stat().st_size))
        except (OSError, InputError):
            found.append("")
    return found
