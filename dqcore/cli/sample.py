"""``dqcore sample``: draw images from a prior."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor
from tyro.conf import Positional

from dqcore.cli.stopping import stoppable
from dqcore.distributed import TIMEOUT, World, join_world
from dqcore.errors import InputError, at_least
from dqcore.files import sole_owner
from dqcore.inference.sample import Samples, load_pair, write_samples
from dqcore.models.auto import model_folder
from dqcore.models.sampling.settings import Sampling
from dqcore.models.weights import PRIOR, weights_folder
from dqcore.printing import say
from dqcore.progress import counted, progress_bar

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["class_labels", "sample"]


def sample(
    prior: Annotated[Path | None, Positional] = None,
    *,
    out: Path = Path("samples"),
    count: int = 64,
    label: str | None = None,
    tokenizer: Path | None = None,
    temperature: float = Sampling.temperature,
    top_k: int | None = Sampling.top_k,
    top_p: float = Sampling.top_p,
    position_temperature: float | None = Sampling.position_temperature,
    position_top_k: int | None = Sampling.position_top_k,
    position_top_p: float = Sampling.position_top_p,
    guidance: float = Sampling.guidance,
    precision: Literal["float32", "bfloat16"] = "float32",
    cache: Literal["auto", "weights", "bfloat16", "int8"] = Sampling.cache,
    slots: int = 128,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
    timeout: float = TIMEOUT,
) -> None:
    """Draw images from a trained prior: PNGs, and a grid of the first 64.

    Sample i depends on the seed and i alone. Under torchrun the processes share the images, in whole batches.

    Args:
        prior: Folder of a saved prior or of a training run; by default the prior that comes with the package.
        out: Folder for the images; samples of an earlier call are replaced or removed, other files stay.
        count: Number of images.
        label: Class of all images, by name or number; "all" takes the classes in turn and names each file by its class,
            which is what a prior with classes does by default.
        tokenizer: Folder of the tokenizer; by default the one saved with the prior.
        temperature: Divides the logits of contents.
        top_k: Contents are drawn from this many likeliest codes.
        top_p: Contents are drawn from the smallest set of likeliest codes whose probabilities reach this sum.
        position_temperature: As temperature, for positions; by default the same. A Global-Local prior has no positions
            to draw and takes none of the three options.
        position_top_k: As top_k, for positions.
        position_top_p: As top_p, for positions.
        guidance: Above 1 moves samples towards their class; needs a prior trained with label_dropout.
        precision: Of the prior's weights; bfloat16 is for a GPU. This and cache round, which may change the codes.
        cache: How the keys and values of the tokens so far are kept: weights (in the dtype of the weights), bfloat16 or
            int8; auto is bfloat16 for a float32 model on a GPU.
        slots: Samples drawn at once.
        batch_size: Images decoded together.
        seed: Fixes the samples.
        device: auto, cpu, cuda or cuda:N.
        timeout: Under torchrun, seconds to wait for a process that does not answer before the job ends.
    """
    at_least(1, count=count, slots=slots, batch_size=batch_size)
    positions = (position_temperature, position_top_k, position_top_p)
    sampling = Sampling(temperature, top_k, top_p, *positions, guidance, cache)
    world = join_world(device, timeout)
    pair, rest = _load(prior, tokenizer, world, label, count, precision)
    _write(*pair, out, count, sampling=sampling, world=world, seed=seed, slots=slots, batch_size=batch_size, **rest)


def _load(
    prior: Path | None, tokenizer: Path | None, world: World, label: str | None, count: int, precision: str
) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """The prior and its tokenizer, and the samples' classes by number and by name."""
    prior = prior or weights_folder(PRIOR)
    model, decoder = load_pair(prior, tokenizer, world.device)
    labels, names = class_labels(model_folder(prior), model.config.num_classes, label, count)
    model = model.bfloat16() if precision == "bfloat16" else model
    return (model, decoder), {"labels": labels, "names": names}


def _write(model: Any, decoder: Any, out: Path, count: int, *, world: World, **rest: Any) -> None:
    """Write the samples with a progress bar, and say where they are; a signal ends the work after a batch."""
    again = "the same line draws them all again"
    alone = sole_owner(out, "writing pictures") if world.is_main else contextlib.nullcontext()
    with alone, progress_bar() as bar, stoppable("sample", "sample", again) as check:
        rest |= {"progress": _report_to(bar, count), "written": lambda written: check(written, count)}
        samples = write_samples(model, decoder, out, count, world=world, **rest)
    if world.is_main:
        _tell(samples, out)


def _tell(samples: Samples, out: Path) -> None:
    speed = f"{samples.images_per_second:.2f} images/s"
    say(f"{counted(len(samples.paths), 'image')} in {out}, {speed}; together: {samples.grid}")
    if samples.removed:
        say(f"{counted(samples.removed, 'older sample')} in {out} removed")


def _report_to(bar: Progress, count: int) -> Callable[[int, int], object]:
    task = bar.add_task("sample", total=count)
    return lambda done, total: bar.update(task, completed=done, total=total)


def class_labels(
    folder: Path, num_classes: int, label: str | None, count: int
) -> tuple[Tensor | int | None, list[str] | None]:
    """The numbers of the classes that the user named, and the class of each sample where they differ.

    Args:
        folder: The prior's folder, with the names of its classes.
        num_classes: How many it has; 0 for none.
        label: Name or number of a class, "all", or None.
        count: Number of samples.

    Raises:
        InputError: There is no such class.
    """
    if num_classes == 0:
        if label is not None:
            raise InputError("label: this prior has no classes")
        return None, None
    path = folder / "classes.json"
    names = _class_names(path, num_classes) if path.is_file() else []
    if label in (None, "all"):
        labels = torch.arange(count) % num_classes
        return labels, [names[index] if names else f"class{index}" for index in labels.tolist()]
    if label in names:
        return int(names.index(label)), None
    assert label is not None
    if label.isdecimal() and int(label) < num_classes:
        return int(label), None
    known = ", ".join(names) if names else f"0 to {num_classes - 1}"
    raise InputError(f"label: there is no class {label!r}, expected one of {known}")


def _class_names(path: Path, num_classes: int) -> list[str]:
    try:
        names = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: expected a list of the classes' names ({error})") from error
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: expected a list of {num_classes} names")
    return names
