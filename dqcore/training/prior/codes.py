"""The codes that a prior is trained on: read from a folder, or made from images once and kept in the run's folder."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.data.batches import MEMORY_LIMIT, Crops
from dqcore.data.codes import CachedCodes, folder_labels, read_codes
from dqcore.data.crops import CenterCrop, RandomCrop
from dqcore.data.images import list_images, uint8_to_float
from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.models.auto import TOKENIZERS, check_identity, fingerprint, load_saved, saved_files
from dqcore.training.prior.options import PriorTraining
from dqcore.training.state import read_state, write_state

__all__ = ["keep_tokenizer", "training_codes"]

log = logging.getLogger(__name__)

CACHE = "codes.pt"


def training_codes(options: PriorTraining, world: World) -> CachedCodes:
    """The codes that the options ask for. Every process calls this; the main one makes them, the others wait for it.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: Images differ in size, or codes were made by another tokenizer than the one given.
    """
    identity = "" if options.tokenizer is None else fingerprint(options.tokenizer)
    if options.codes is not None:
        codes = read_codes(options.codes, classes=options.classes)
        made_by = codes.tokenizer or "unknown"
        check_identity(f"the codes in {options.codes} were made by", made_by, identity, str(options.tokenizer))
        return codes
    if not world.is_main:
        world.barrier()
    codes = _kept_or_made(options, world, identity)
    if world.is_main:
        world.barrier()
    return codes


def keep_tokenizer(options: PriorTraining) -> None:
    """Copy the tokenizer's files beside the prior. Their bytes stay the same, and so does its fingerprint."""
    if options.tokenizer is None:
        return
    folder = options.out / "model" / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    for file in saved_files(options.tokenizer):
        temporary = folder / f".{file.name}.tmp"
        shutil.copyfile(file, temporary)
        os.replace(temporary, folder / file.name)


def _kept_or_made(options: PriorTraining, world: World, identity: str) -> CachedCodes:
    """The codes in the run's folder, if they were made from the same images in the same way; else new ones."""
    assert options.data is not None and options.tokenizer is not None and options.views is not None
    paths = list_images(options.data)
    root = options.data if options.data.is_dir() else options.data.parent
    names = [os.path.relpath(path, root) for path in paths]
    labels, classes = folder_labels(names, options.classes)
    what = (identity, names, options.image_size, options.resize, options.views, options.seed, options.classes)
    made_of = hashlib.sha256(repr(what).encode()).hexdigest()
    cache = options.out / CACHE
    if cache.is_file():
        state = read_state(cache)
        if state.pop("made_of", None) == made_of:
            return CachedCodes.of_state(state)
    log.info("encoding %d crops of %d images", options.views * len(paths), len(paths))
    tokenizer = load_saved(options.tokenizer, TOKENIZERS).to(world.device)
    codes = CachedCodes.of_maps(
        _encode(options, tokenizer, paths, world.device),
        labels * options.views,
        num_granularities=tokenizer.config.num_granularities,
        codebook_size=tokenizer.config.codebook_size,
        tokenizer=identity,
        classes=classes,
    )
    if world.is_main:
        write_state(cache, codes.to_state() | {"made_of": made_of})
    return codes


@torch.no_grad()
def _encode(
    options: PriorTraining, tokenizer: Any, paths: list[Path], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Code maps ``(B, H, W)`` and grain maps ``(B, h, w)``: of all images in their first view, then in the next."""
    assert options.image_size is not None and options.views is not None
    resize = options.resize or options.image_size
    stride = tokenizer.config.strides[0]
    if options.image_size % stride:
        raise InputError(
            f"image_size: expected a multiple of {stride}, the tokenizer's stride, got {options.image_size}"
        )
    tokenizer.eval()
    central = Crops(paths, CenterCrop(options.image_size, resize), seed=options.seed)
    random = Crops(paths, RandomCrop(options.image_size, resize), seed=options.seed, keep=MEMORY_LIMIT // 4)
    for view in range(options.views):
        crops = random if view else central
        for first in range(0, len(paths), options.encode_batch):
            images = [crops[view, i].image for i in range(first, min(first + options.encode_batch, len(paths)))]
            encoding = tokenizer.encode(uint8_to_float(torch.stack(images).to(device)))
            yield encoding.codes, encoding.grain
