"""``dqcore decode``: codes back to pictures."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import Tensor
from tyro.conf import Positional

from dqcore.cli.stopping import Stoppable, stoppable
from dqcore.data.images import SUFFIXES, tensor_to_image
from dqcore.data.listing import files_for
from dqcore.data.reading import allow_pixels
from dqcore.distributed import TIMEOUT, World, join_world
from dqcore.distributed.sharing import Turns
from dqcore.errors import InputError
from dqcore.files import folder_lock, sole_owner, write_atomically
from dqcore.inference.codec import Codec, load_codec
from dqcore.inference.decode import Item, decode_item, list_codes, list_names
from dqcore.inference.stream_file import SUFFIX
from dqcore.models.weights import TOKENIZER, weights_folder
from dqcore.printing import say
from dqcore.progress import counted, progress_bar

__all__ = ["decode"]


def decode(
    codes: Annotated[tuple[Path, ...], Positional],
    *,
    checkpoint: Path | None = None,
    out: Path,
    preview: bool = False,
    overwrite: bool = False,
    max_pixels: int | None = None,
    device: str = "auto",
    timeout: float = TIMEOUT,
) -> None:
    """Decode .dqc files, folders of them, or the shards of dqcore encode, to PNG pictures of the photos' own size.

    Under torchrun the processes share the pictures.

    Args:
        codes: .dqc files, folders of them, or folders of shards.
        checkpoint: Folder of the tokenizer that wrote them, or of its training run; by default the weights that come
            with dqcore.
        out: Folder for the pictures; or one .png file.
        preview: Decode the coarse codes alone, which come first in a .dqc file; its beginning will do.
        overwrite: Replace pictures that are there.
        max_pixels: Most pixels of a .dqc file's photo, which are known before its codes are read; by default as many
            as fill a fortieth of the memory, and never above 67 million.
        device: auto, cpu, cuda or cuda:N.
        timeout: Under torchrun, seconds to wait for a process that does not answer before the job ends.
    """
    if not codes:
        raise InputError(f"codes: expected at least one {SUFFIX} file or folder")
    for source in codes:
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file or folder")
    world = join_world(device, timeout)
    codec = load_codec(checkpoint or weights_folder(TOKENIZER), str(world.device))
    alone = out.suffix.lower() == ".png"
    if out.suffix.lower() in SUFFIXES - {".png"} and not out.is_dir():
        raise InputError(f"out: expected a folder or a .png file, got {out}")
    if alone and (len(codes) != 1 or not codes[0].is_file()):
        raise InputError(f"out: {out} is one picture, expected one {SUFFIX} file; name a folder")
    with contextlib.nullcontext() if alone or not world.is_main else sole_owner(out, "writing pictures"):
        world.barrier()
        job = _Job(codec, codes, out, alone, preview, overwrite)
        with allow_pixels(max_pixels), stoppable("decode", "picture") as check:
            _decode(job, world, check)


@dataclass(frozen=True)
class _Job:
    """Codes to decode, and how."""

    codec: Codec
    codes: Sequence[Path]
    out: Path
    alone: bool
    preview: bool
    overwrite: bool

    @property
    def total(self) -> int:
        """How many pictures there are to be."""
        return sum(len(list_names(source)) for source in self.codes)

    def items(self) -> Iterator[tuple[Item, Path]]:
        """Everything to decode, and its picture's file: for ``a.dqc`` ``a.png``, or ``a.dqc.png`` beside that."""
        names = (self._place(source) / name for source in self.codes for name in list_names(source))
        folders = {folder for name in names for folder in name.parents}  # no picture may stand where one is to be
        for source in self.codes:
            taken = set(folders)
            for item in list_codes(source, self.codec):
                files = map(Path, files_for(str(self._place(source) / item.name), ".png"))
                target = next(file for file in files if file not in taken)
                taken.add(target)
                yield item, self.out if self.alone else target

    def _place(self, source: Path) -> Path:
        """The folder for a source's pictures: one of its own if it is one of several folders."""
        return self.out / source.resolve().name if len(self.codes) > 1 and source.is_dir() else self.out


def _decode(job: _Job, world: World, check: Stoppable) -> None:
    """Decode this process's share of the items; the first process prints the result of all."""
    turns, targets, total = Turns(world), set[Path](), job.total
    mine, done = turns.take(), 0
    failures: dict[int, str] = {}
    with progress_bar() as bar:
        task = bar.add_task("decode", total=total)
        for number, (item, target) in enumerate(job.items()):
            taken = target in targets
            targets.add(target)
            if check.signals.received:
                turns.close()
                break
            if number != mine:
                continue
            try:
                _check_target(target, job.out, taken)
                image = decode_item(job.codec, item, preview=job.preview)
                with folder_lock(target.parent, "writing") if job.alone else contextlib.nullcontext():
                    _write(image, target, job.overwrite)
            except InputError as error:
                if total == 1:
                    raise
                failures[number] = str(error)
                say(f"not decoded: {error}", error=True)
            done += 1
            bar.update(task, completed=number + 1)
            mine = turns.take()
    done = sum(world.gather(done))
    check.signals.received = max(world.gather(check.signals.received))
    check(done, total)
    failures = {number: text for part in world.gather(failures) for number, text in part.items()}
    if world.is_main:
        _finish(done, [failures[number] for number in sorted(failures)], job.out)


def _finish(number: int, failures: Sequence[str], out: Path) -> None:
    done = number - len(failures)
    say(f"{counted(done, 'picture')} decoded, {len(failures)} not; in {out}")
    if failures:
        raise InputError(f"{len(failures)} of {number} were not decoded, the first: {failures[0]}")


def _check_target(target: Path, out: Path, taken: bool) -> None:
    """Raise if a picture would lie elsewhere, or replace one of this run."""
    if ".." in target.relative_to(out).parts or taken:
        raise InputError(f"out: {target} is no place for another picture")


def _write(image: Tensor, target: Path, overwrite: bool) -> None:
    """Write a picture. A file with the same bytes is left as it is: a run that was stopped has written it.

    Raises:
        InputError: Another file is there.
    """
    data = io.BytesIO()
    tensor_to_image(image).save(data, format="PNG")
    if target.exists() and not overwrite:
        if target.is_file() and target.read_bytes() == data.getvalue():
            return
        raise InputError(f"out: {target} is there already; choose another folder, or allow it with --overwrite")
    write_atomically(target, lambda file: file.write(data.getvalue()))
