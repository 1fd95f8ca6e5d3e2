"""``dqcore complete``: keep a part of a photo, and let a prior draw the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from dqcore.backends import choose_device
from dqcore.cli.sample import class_labels
from dqcore.data.images import read_image, tensor_to_image
from dqcore.data.listing import bare_name
from dqcore.errors import InputError, at_least
from dqcore.files import sole_owner
from dqcore.files.pictures import check_targets, write_picture
from dqcore.inference.complete import complete as complete_photo
from dqcore.inference.complete import kept_part
from dqcore.inference.sample import load_pair
from dqcore.models.auto import model_folder
from dqcore.models.sampling.settings import Sampling
from dqcore.models.weights import PRIOR, weights_folder
from dqcore.printing import say
from dqcore.progress import counted

__all__ = ["complete"]


def complete(
    photo: Annotated[Path, Positional],
    *,
    prior: Path | None = None,
    keep: str = "upper",
    out: Path = Path("completions"),
    count: int = 4,
    label: str | None = None,
    tokenizer: Path | None = None,
    temperature: float = Sampling.temperature,
    top_k: int | None = Sampling.top_k,
    top_p: float = Sampling.top_p,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Keep a part of a photo, and let a prior draw the rest: a PNG for each completion, and one of what was kept.

    The photo is cut around its middle and resized to the size that the prior draws.

    Args:
        photo: Image file.
        prior: Folder of a saved prior or of a training run; by default the prior that comes with the package.
        keep: What is kept: upper or left (half), x,y,w,h of a rectangle in pixels of the photo, or the file of a mask
            of the photo's size, white where the photo is kept.
        out: Folder for the pictures.
        count: Number of completions.
        label: Class of the photo, by name or number, for a prior with classes.
        tokenizer: Folder of the tokenizer; by default the one saved with the prior.
        temperature: Divides the logits of contents.
        top_k: Contents are drawn from this many likeliest codes.
        top_p: Contents are drawn from the smallest set of likeliest codes whose probabilities reach this sum.
        seed: Fixes the completions.
        device: auto, cpu, cuda or cuda:N.
    """
    at_least(1, count=count)
    name = bare_name(photo.name)
    targets = [out / f"{name}-{index + 1}.png" for index in range(count)]
    kept = out / f"{name}-kept.png"
    check_targets([kept, *targets])
    image = read_image(photo)
    kept_part(keep, image.size)  # refuse what cannot be read before the models are loaded
    prior = prior or weights_folder(PRIOR)
    model, decoder = load_pair(prior, tokenizer, choose_device(device))
    if label == "all":
        raise InputError("label: expected one class, got all")
    labels = None
    if label is not None:
        labels = class_labels(model_folder(prior), model.config.num_classes, label, count)[0]
    sampling = Sampling(temperature, top_k, top_p)
    found = complete_photo(model, decoder, image, keep, count, labels=labels, sampling=sampling, seed=seed)
    with sole_owner(out, "writing pictures"):
        write_picture(kept, tensor_to_image(found.given))
        for target, completed in zip(targets, found.images, strict=True):
            write_picture(target, tensor_to_image(completed))
    height, width = found.given.shape[-2:]
    regions = f"{width}x{height} pixels, {int(found.mask.sum())} of {found.mask.numel()} regions kept"
    regions += f", {counted(found.num_given, 'code')}"
    say(f"{regions}; {counted(count, 'completion')} in {out}, what was kept: {kept}")
