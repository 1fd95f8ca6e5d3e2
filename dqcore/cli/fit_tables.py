"""``dqcore fit-tables``: the tables by which a model's ``.dqc`` files are coded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from torch import Tensor
from tyro.conf import Positional

from dqcore.cli.broken import end_with_broken, name_broken
from dqcore.data.images import image_to_tensor, pad_to_stride, readable_images
from dqcore.data.listing import list_images, spread
from dqcore.errors import InputError, at_least
from dqcore.inference.load import load_tokenizer
from dqcore.models.auto import model_folder
from dqcore.printing import say
from dqcore.progress import counted, progress_bar
from dqcore.stream import fit_tables as fit
from dqcore.stream import save_code_tables

__all__ = ["fit_tables"]


def fit_tables(
    checkpoint: Annotated[Path, Positional],
    *,
    data: Path,
    limit: int = 200,
    device: str = "auto",
) -> None:
    """Count a tokenizer's codes on photos, so that its .dqc files become shorter.

    Training does this at its end; a model from elsewhere needs it once. Older tables stay beside the new ones, so .dqc
    files that were written with them can still be read. Broken files are named and passed over; the exit code is then
    2.

    Args:
        checkpoint: Folder of a saved tokenizer or of a training run; code_tables.safetensors is written into it.
        data: Folder of photos like those to be encoded, a .txt list of their paths, or an archive (.tar, .zip, LMDB).
        limit: Count this many photos at most, spread evenly over all of them.
        device: auto, cpu, cuda or cuda:N.
    """
    at_least(1, limit=limit)
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint}: no such folder; tables are written beside a model on disk")
    paths = spread(list_images(data), limit)
    model = load_tokenizer(checkpoint, device)
    broken: list[str] = []
    with progress_bar() as bar:
        task = bar.add_task("count", total=len(paths))

        def images() -> Iterator[Tensor]:
            for _, image in readable_images(paths, lambda _, reason: broken.append(reason)):
                yield pad_to_stride(image_to_tensor(image)[None], model.config.strides[0])
                bar.advance(task)

        try:
            tables = fit(model, images())
        except InputError:  # there may have been no image at all
            if len(broken) == len(paths):
                end_with_broken("data", broken, len(paths))
            raise
        finally:
            name_broken(broken)
    path = save_code_tables(tables, model_folder(checkpoint))
    photos = counted(len(paths) - len(broken), "photo")
    say(f"tables of {photos}, {counted(len(broken), 'broken file')} passed over: {path}")
    end_with_broken("data", broken, len(paths))
