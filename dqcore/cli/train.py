"""``dqcore train tokenizer`` and ``dqcore train prior``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

from tyro.conf import arg

from dqcore import training
from dqcore.cli.given import given_line, named_options
from dqcore.distributed import process_rank
from dqcore.printing import say, typed
from dqcore.progress import ask, shown_log
from dqcore.training import PriorTraining, StoppedError, TokenizerTraining
from dqcore.training.arguments import Arguments

__all__ = ["train_prior", "train_tokenizer"]

Options = TypeVar("Options", bound=Arguments)


def train_tokenizer(options: Annotated[TokenizerTraining, arg(name="")]) -> None:
    """Train a tokenizer on a folder of images.

    What is not given comes from the recipe, or is chosen for this machine, and is printed. Ctrl-C saves and stops;
    ``dqcore train tokenizer --resume --out RUN`` goes on.
    """
    with shown_log(), _resumable("tokenizer", options.out):
        run = training.train_tokenizer(_of_run(options), confirm=ask)
    last = next((row for row in reversed(run.metrics) if "val_psnr" in row), None)
    numbers = f", {last['val_psnr']:.2f} dB on held-out images" if last else ""
    _tell(f"model in {run.path / 'model'}{numbers}; dqcore report {typed(str(run.path))} makes its report")


def train_prior(options: Annotated[PriorTraining, arg(name="")]) -> None:
    """Train a prior on a tokenizer's codes.

    What is not given comes from the recipe, and is printed. Ctrl-C saves and stops; ``dqcore train prior --resume
    --out RUN`` goes on.
    """
    with shown_log(), _resumable("prior", options.out):
        run = training.train_prior(_of_run(options), confirm=ask)
    last = next((row for row in reversed(run.metrics) if "val_bits_per_image" in row), None)
    numbers = f", {last['val_bits_per_image']:.1f} bits an image on held-out ones" if last else ""
    _tell(f"model in {run.path / 'model'}{numbers}; dqcore sample {typed(str(run.path))} draws from it")


def _tell(text: str) -> None:
    """Print the result, in the first of several processes."""
    if process_rank() == 0:
        say(text)


def _of_run(options: Options) -> Options:
    """With --resume, the options of the run in ``out``, changed by those that were named; else these."""
    startable = getattr(options, "data", None) is not None or getattr(options, "codes", None) is not None
    if not options.resume or (startable and not (options.out / "config.json").is_file()):
        return options
    names = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    named = named_options(names, dict(options.RENAMED))
    return type(options).of_run(options.out, **{name: getattr(options, name) for name in named})


@contextmanager
def _resumable(kind: str, out: Path) -> Iterator[None]:
    """If the run is stopped, say what is kept and how it goes on."""
    try:
        yield
    except StoppedError as stop:
        stop.args = (f"{stop.args[0]}; dqcore train {kind} --resume --out {typed(str(stop.folder))} goes on",)
        raise
    except KeyboardInterrupt as stop:  # before the first step, or the second signal
        stop.args = (f"{stop.args[0] if stop.args else 'interrupted'}; {_kept(kind, out)}",)
        raise


def _kept(kind: str, out: Path) -> str:
    """What a run that ended at once has left, and which command goes on."""
    if (out / "checkpoint.pt").is_file():
        return f"the last checkpoint is in {out}; dqcore train {kind} --resume --out {typed(str(out))} goes on"
    begin = given_line(f"train {kind}")
    return f"that was before the first step, nothing is trained yet; the same line starts again: {begin}"
