"""Loading saved models of any class, and checking that a prior belongs to a tokenizer."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqcore.errors import InputError
from dqcore.models.hub import download
from dqcore.models.priors.dq_transformer import DQTransformer
from dqcore.models.priors.global_local import GlobalLocal
from dqcore.models.priors.raster import Raster, RasterDynamic
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.models.tokenizers.vqgan import VQGAN

__all__ = [
    "PRIORS",
    "TOKENIZERS",
    "check_belongs",
    "check_identity",
    "fingerprint",
    "kind_of_preset",
    "load_identified",
    "load_saved",
    "model_folder",
    "saved_files",
]

TOKENIZERS: Mapping[str, Any] = {kind.__name__: kind for kind in (DQVAE, VQGAN)}
PRIORS: Mapping[str, Any] = {kind.__name__: kind for kind in (DQTransformer, RasterDynamic, GlobalLocal, Raster)}

_TRIES = 5


def model_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a saved model.

    Args:
        path: That folder, the folder of a training run, or ``hf:owner/name`` of a repository on the Hugging Face Hub.

    Raises:
        FileNotFoundError: There is nothing of that name.
    """
    path = Path(path)
    if not path.exists():
        return download(str(path))
    return path / "model" if (path / "model" / "config.json").is_file() else path


def saved_files(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The files of a saved model, its config and its weights.

    Args:
        path: See :func:`model_folder`.

    Raises:
        FileNotFoundError: There is no saved model.
    """
    folder = model_folder(path)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{path}: expected a folder with config.json and model.safetensors")
    return folder / "config.json", folder / "model.safetensors"


def kind_of_preset(preset: str, kinds: Mapping[str, Any], noun: str) -> Any:
    """The class that has a preset of this name.

    Args:
        preset: Name of a preset.
        kinds: Names of classes to classes.
        noun: What such a class is called in the message of the error.

    Raises:
        ValueError: None of them has.
    """
    known = {name: kind for kind in kinds.values() for name in kind.PRESETS}
    if preset not in known:
        nearest = difflib.get_close_matches(preset, known, n=1, cutoff=0.0)[0]
        raise InputError(f"preset: no {noun} is called {preset!r}; the nearest is {nearest!r} of {', '.join(known)}")
    return known[preset]


def load_saved(path: Path, kinds: Mapping[str, Any]) -> Any:
    """Load a model of one of these classes, in evaluation mode, on the CPU.

    Args:
        path: As in :func:`model_folder`.
        kinds: The classes, by their names, such as :data:`PRIORS`.

    Raises:
        FileNotFoundError: There is no saved model.
        InputError: It is of another class, or damaged.
    """
    config, _ = saved_files(path)
    try:
        name = json.loads(config.read_text()).get("model")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{config}: expected a JSON object ({error})") from error
    if not isinstance(name, str) or name not in kinds:
        raise InputError(f"{path}: expected one of {', '.join(kinds)}, it describes {name or 'no model of dqcore'}")
    return kinds[name].from_pretrained(config.parent)


def load_identified(path: Path, kinds: Mapping[str, Any]) -> tuple[Any, str]:
    """:func:`load_saved` and :func:`fingerprint` of the same files, though a training run may save new ones meanwhile.

    Raises:
        FileNotFoundError: There is no saved model.
        InputError: It is of another class, or damaged, or is saved anew all the time.
    """
    for _ in range(_TRIES):
        before = _states(path)
        try:
            found = load_saved(path, kinds), fingerprint(path)
        except InputError:  # a config and weights of two different saves make no model
            if _states(path) == before:
                raise
            continue
        if _states(path) == before:
            return found
    raise InputError(f"{path}: the model is saved anew while it is read; try again when that has ended")


def _states(path: Path) -> list[tuple[int, int, int]]:
    """What tells whether one of a model's files was written or replaced."""
    return [(about.st_ino, about.st_mtime_ns, about.st_size) for about in map(Path.stat, saved_files(path))]


def fingerprint(path: str | os.PathLike[str]) -> str:
    """A hash of a saved tokenizer's config and weights, by which it can be told from others.

    Raises:
        FileNotFoundError: There is no saved model.
    """
    digest = hashlib.sha256()
    for file in saved_files(path):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def check_identity(what: str, wanted: str, identity: str, given: str = "this") -> None:
    """Raise unless two fingerprints are equal; where either is unknown, an empty text, there is nothing to compare.

    Args:
        what: Of what ``wanted`` is the tokenizer, for the message of the error.
        wanted: Fingerprint of the tokenizer that is needed.
        identity: Fingerprint of the tokenizer that was given.
        given: Name of the latter, for the message of the error.

    Raises:
        ValueError: They differ.
    """
    if wanted and identity and wanted != identity:
        raise InputError(f"tokenizer: {what} tokenizer {wanted[:12]}, {given} is {identity[:12]}")


def check_belongs(prior: Any, tokenizer: Any, identity: str = "") -> None:
    """Raise unless ``tokenizer`` can decode what ``prior`` draws.

    Args:
        prior: A prior.
        tokenizer: A tokenizer.
        identity: The tokenizer's :func:`fingerprint`; empty if it is not known.

    Raises:
        InputError: Their codebooks or granularities differ, or the prior was trained on another tokenizer's codes.
    """
    for name in ("codebook_size", "num_granularities"):
        mine, theirs = getattr(prior.config, name), getattr(tokenizer.config, name)
        if mine != theirs:
            raise InputError(f"tokenizer: the prior was made for {name} {mine}, this tokenizer has {theirs}")
    check_identity("the prior was trained on the codes of", prior.config.tokenizer, identity)
