"""``dqcore decode``: codes back to pictures."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from torch import Tensor
from tyro.conf import Positional, arg

from dqcore.cli.stopping import stoppable
from dqcore.data.images import tensor_to_image
from dqcore.errors import InputError
from dqcore.files import sole_owner, write_atomically
from dqcore.inference.codec import Codec, load_codec
from dqcore.inference.decode import count_items, decode_item, list_codes
from dqcore.inference.streams import SUFFIX
from dqcore.models.weights import TOKENIZER, weights_folder
from dqcore.progress import progress_bar

__all__ = ["decode"]


def decode(
    codes: Annotated[tuple[Path, ...], Positional],
    *,
    checkpoint: Path | None = None,
    out: Annotated[Path, arg(aliases=["-o"])],
    preview: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> None:
    """Decode .dqc files, folders of them, or the shards of dqcore encode, to PNG pictures of the photos' own size.

    Args:
        codes: .dqc files, folders of them, or folders of shards.
        checkpoint: Folder of the tokenizer that wrote them, or of its training run; by default the weights that come
            with dqcore.
        out: Folder for the pictures; or one .png file.
        preview: Decode the coarse codes alone, which come first in a .dqc file; its beginning will do.
        overwrite: Replace pictures that are there.
        device: auto, cpu, cuda or cuda:N.
    """
    if not codes:
        raise InputError(f"codes: expected at least one {SUFFIX} file or folder")
    for source in codes:
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file or folder")
    codec = load_codec(checkpoint or weights_folder(TOKENIZER), device)
    alone = out.suffix.lower() == ".png"
    if alone and (len(codes) != 1 or not codes[0].is_file()):
        raise InputError(f"out: {out} is one picture, expected one {SUFFIX} file; name a folder")
    with contextlib.nullcontext() if alone else sole_owner(out, "writing pictures"):
        _decode(codec, codes, out, alone, preview, overwrite)


def _decode(codec: Codec, codes: Sequence[Path], out: Path, alone: bool, preview: bool, overwrite: bool) -> None:
    targets: set[Path] = set()
    failures: list[str] = []
    number = 0
    total = sum(count_items(source) for source in codes)
    with progress_bar() as bar, stoppable("decode", "picture") as check:
        task = bar.add_task("decode", total=total)
        for source in codes:
            for item in list_codes(source, codec):
                folder = out / source.resolve().name if len(codes) > 1 and source.is_dir() else out
                target = out if alone else folder / f"{item.name}.png"
                number += 1
                try:
                    _check_target(target, out, targets)
                    _write(decode_item(codec, item, preview=preview), target, overwrite)
                except InputError as error:
                    if total == 1:
                        raise
                    failures.append(str(error))
                    print(f"not decoded: {error}", file=sys.stderr)
                bar.advance(task)
                check(number, total)
    _finish(number, failures, out)


def _finish(number: int, failures: Sequence[str], out: Path) -> None:
    done = number - len(failures)
    print(f"{done} {'picture' if done == 1 else 'pictures'} decoded, {len(failures)} not; in {out}")
    if failures:
        raise InputError(f"{len(failures)} of {number} were not decoded, the first: {failures[0]}")


def _check_target(target: Path, out: Path, targets: set[Path]) -> None:
    """Raise if a picture would lie elsewhere, or replace one of this run."""
    if ".." in target.relative_to(out).parts or target in targets:
        raise InputError(f"out: {target} is no place for another picture")
    targets.add(target)


def _write(image: Tensor, target: Path, overwrite: bool) -> None:
    """Write a picture, unless that very picture is there, as one of a run that was stopped.

    Raises:
        InputError: Another one is there.
    """
    data = io.BytesIO()
    tensor_to_image(image).save(data, format="PNG")
    if target.exists() and not overwrite:
        if target.is_file() and target.read_bytes() == data.getvalue():
            return
        raise InputError(f"out: {target} is there already; choose another folder, or allow it with --overwrite")
    write_atomically(target, lambda file: file.write(data.getvalue()))
