"""The codes that a prior is trained on: read from a folder, or made from images once and kept in the run's folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dqcore.data.batches import Crops
from dqcore.data.codes import CachedCodes, read_codes
from dqcore.data.crops import CenterCrop
from dqcore.data.images import broken_as, image_to_uint8, read_image, readable_images, uint8_to_float
from dqcore.data.labels import image_labels
from dqcore.data.listing import image_name, list_images, source_root
from dqcore.data.preprocessing import CROPS, crop_of
from dqcore.data.provenance import LIMIT, hash_file
from dqcore.distributed import World
from dqcore.distributed.sharing import share_work
from dqcore.errors import InputError
from dqcore.files import write_atomically
from dqcore.models.auto import TOKENIZERS, check_identity, fingerprint, load_saved, model_folder, saved_files
from dqcore.progress import CountLines, counted
from dqcore.training.prior.options import PriorTraining
from dqcore.training.state import read_state, write_state

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["copy_tokenizer", "tokenizer_folder", "training_codes"]

log = logging.getLogger(__name__)

CACHE = "codes.pt"
_NEEDED = ("config.json", "model.safetensors")


def training_codes(options: PriorTraining, world: World) -> CachedCodes:
    """The codes that the options ask for. Every process calls this, and makes its part of them if there are none.

    The tokenizer is the one beside the prior, where :func:`copy_tokenizer` has put it.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: Images differ in size, or codes were made by another tokenizer than the one given.
    """
    tokenizer = None if options.tokenizer is None else tokenizer_folder(options)
    identity = "" if tokenizer is None else fingerprint(tokenizer)
    if options.codes is not None:
        codes = read_codes(options.codes, classes=options.classes)
        made_by = codes.tokenizer or "unknown"
        check_identity(f"the codes in {options.codes} were made by", made_by, identity, str(options.tokenizer))
        return codes
    assert options.data is not None and tokenizer is not None
    paths = list_images(options.data)
    names = [image_name(path, source_root(options.data)) for path in paths]
    made_of = _made_of(options, names, identity, paths) if world.is_main else {}
    found = _current_cache(options, made_of) if world.is_main else None
    if world.of_first(found is None):
        found = _encode_images(options, world, tokenizer, identity, dict(zip(paths, names, strict=True)), made_of)
    return _cached(options) if found is None else found


def tokenizer_folder(options: PriorTraining) -> Path:
    """Where the copy of the tokenizer lies."""
    return options.out / "model" / "tokenizer"


def copy_tokenizer(options: PriorTraining) -> None:
    """Copy the tokenizer's files beside the prior, at the start of a run: it may be saved anew or deleted meanwhile.

    Their bytes stay the same, and so does its fingerprint. A resumed run goes on with the copy that it has.
    One that cannot be loaded raises before anything is copied, so that the message names the folder that was given.
    """
    folder = tokenizer_folder(options)
    if options.tokenizer is None or (options.resume and all((folder / name).is_file() for name in _NEEDED)):
        return
    load_saved(options.tokenizer, TOKENIZERS)
    for file in (*saved_files(options.tokenizer), *model_folder(options.tokenizer).glob("code_tables*.safetensors")):
        write_atomically(folder / file.name, functools.partial(_write, file.read_bytes()))


def _write(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


def _made_of(options: PriorTraining, names: Sequence[str], identity: str, paths: Sequence[Path]) -> dict[str, str]:
    """What codes depend on: options and names, and what the files hold."""
    what: tuple[Any, ...] = (identity, names, options.image_size, options.resize)
    what += (options.views, options.seed, options.classes)
    what += (options.preprocessing,) if options.preprocessing else ()
    texts = {"made_of": repr(what), "contents": repr(_hashes(paths))}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _cached(options: PriorTraining) -> CachedCodes:
    return CachedCodes.of_state(read_state(options.out / CACHE))


def _current_cache(options: PriorTraining, made_of: dict[str, str]) -> CachedCodes | None:
    """The codes in the run's folder, if they were made from the same images in the same way.

    A run that goes on keeps its codes. A new one makes them again if a file could not be read or has changed since.
    """
    cache = options.out / CACHE
    if not cache.is_file():
        return None
    state = read_state(cache)
    changed = bool(state.get("broken")) or state.get("contents", made_of["contents"]) != made_of["contents"]
    if state.get("made_of") != made_of["made_of"] or (changed and not options.resume):
        return None
    return CachedCodes.of_state(state)


def _encode_images(
    options: PriorTraining,
    world: World,
    tokenizer: Path,
    identity: str,
    name_of: dict[Path, str],
    made_of: dict[str, str],
) -> CachedCodes | None:
    """Encode the images, every process its part; the first process writes the codes to the cache and returns them."""
    assert options.views is not None
    if world.is_main:
        log.info("encoding %s of %s", counted(options.views * len(name_of), "crop"), counted(len(name_of), "image"))
    encoded = _Encoder(options, load_saved(tokenizer, TOKENIZERS).to(world.device), list(name_of))
    maps = encoded.maps(world)
    if not world.is_main:
        for _ in maps:
            pass
        world.barrier()
        return None
    labels, classes = image_labels(list(name_of), list(name_of.values()), options.classes)
    label_of = dict(zip(name_of, labels, strict=True))
    codes = CachedCodes.of_maps(
        maps,
        [],  # labels: set below, when it is known which files could be read
        num_granularities=encoded.tokenizer.config.num_granularities,
        codebook_size=encoded.tokenizer.config.codebook_size,
        tokenizer=identity,
        classes=classes,
    )
    for reason in encoded.broken:
        log.warning("left out: %s", reason)
    labels_of_good = torch.tensor([label_of[path] for path in encoded.good] * options.views, dtype=torch.int64)
    codes = dataclasses.replace(codes, labels=labels_of_good, names=tuple(name_of[path] for path in encoded.good))
    write_state(options.out / CACHE, codes.to_state() | made_of | {"broken": encoded.broken})
    world.barrier()
    return codes


class _Encoded(NamedTuple):
    """Some images: those that could be read, why the others could not, and code maps and grain maps of each view."""

    good: list[Path]
    broken: list[str]
    views: list[tuple[Tensor, Tensor]]


class _Encoder:
    """Encodes the crops of images, and knows which files they came from.

    Attributes:
        good: The files that could be read, in their order; known in the first process, as ``broken``.
        broken: Why each of the others could not.
    """

    def __init__(self, options: PriorTraining, tokenizer: Any, paths: Sequence[Path]) -> None:
        assert options.image_size is not None and options.views is not None
        size, resize = options.image_size, options.resize or options.image_size
        self.tokenizer, self.paths = tokenizer.eval(), paths
        self.views, self.batch = options.views, options.encode_batch
        if size % (stride := tokenizer.config.strides[0]):
            raise InputError(f"image_size: expected a multiple of {stride}, the tokenizer's stride, got {size}")
        self.central = CenterCrop(size, resize)
        kind = CROPS[options.preprocessing] if options.preprocessing else "random"
        self.crops = Crops(paths, crop_of(kind, size, resize), seed=options.seed)
        self.good: list[Path] = []
        self.broken: list[str] = []

    def maps(self, world: World) -> Iterator[tuple[Tensor, Tensor]]:
        """Code maps ``(B, H, W)`` and grain maps ``(B, h, w)``: of all images in their first view, then in the next.

        Every process iterates; only the first one gets them.

        Raises:
            InputError: No file can be read.
        """
        count = len(self.paths)
        batches = [range(start, min(start + self.batch, count)) for start in range(0, count, self.batch)]
        views: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(self.views)]
        lines = CountLines("encoding images", count)
        for found in share_work(world, batches, self._encode):
            self.good += found.good
            self.broken += found.broken
            if world.is_main:
                lines.move(len(self.good) + len(self.broken))
            for some, maps in zip(views, found.views, strict=False):
                some.append(maps)
        if world.is_main and not self.good:
            raise InputError(f"data: none of its {count} images can be read, the first: {self.broken[0]}")
        for some in views:
            yield from ((codes.long(), grain.long()) for codes, grain in some)

    @torch.no_grad()
    def _encode(self, batch: range) -> _Encoded:
        """All views of some images, each of which is read once."""
        broken: list[str] = []
        paths = [self.paths[index] for index in batch]
        whole: dict[Path, Image] = {}

        def read(path: Path) -> Image:
            image = read_image(path)
            with broken_as(path):
                if self.views > 1:
                    whole[path] = self.crops.crop.prepare(image)
                return self.central.prepare(image)

        images = dict(readable_images(paths, lambda _, reason: broken.append(reason), read=read))
        good = [index for index in batch if self.paths[index] in images]
        if not good:
            return _Encoded([], broken, [])
        crops = [[image_to_uint8(image) for image in images.values()]]
        self.crops.read = whole.__getitem__
        crops += [[self.crops[view, index].image for index in good] for view in range(1, self.views)]
        return _Encoded(list(images), broken, [self._maps(torch.stack(some)) for some in crops])

    def _maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        device = self.tokenizer.quantizer.codebook.weight.device
        encoding = self.tokenizer.encode(uint8_to_float(pixels.to(device)))
        return encoding.codes.to("cpu", torch.int32), encoding.grain.to("cpu", torch.uint8)


def _hashes(paths: Sequence[Path]) -> list[str]:
    """What each file holds, as far as it can be read; of very many files their sizes."""
    found = []
    for path in paths:
        try:
            found.append(hash_file(path) if len(paths) <= LIMIT else str(path.stat().st_size))
        except (OSError, InputError):
            found.append("")
    return found
