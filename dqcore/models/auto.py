"""Loading saved models of any class, and checking that a prior belongs to a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqcore.errors import InputError
from dqcore.models.pretrained import download
from dqcore.models.priors.dq_transformer import DQTransformer
from dqcore.models.priors.global_local import GlobalLocal
from dqcore.models.priors.raster import Raster, RasterDynamic
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.models.tokenizers.vqgan import VQGAN

__all__ = ["PRIORS", "TOKENIZERS", "check_belongs", "fingerprint", "load_saved", "model_folder"]

TOKENIZERS: Mapping[str, Any] = {kind.__name__: kind for kind in (DQVAE, VQGAN)}
PRIORS: Mapping[str, Any] = {kind.__name__: kind for kind in (DQTransformer, RasterDynamic, GlobalLocal, Raster)}


def model_folder(path: Path) -> Path:
    """The folder of a saved model.

    Args:
        path: That folder, the folder of a training run, or the id of a repository on the Hugging Face Hub.

    Raises:
        FileNotFoundError: There is nothing of that name.
    """
    if not path.exists():
        return download(str(path))
    return path / "model" if (path / "model" / "config.json").is_file() else path


def load_saved(path: Path, kinds: Mapping[str, Any]) -> Any:
    """Load a model of one of these classes, in evaluation mode, on the CPU.

    Args:
        path: As in :func:`model_folder`.
        kinds: The classes, by their names, such as :data:`PRIORS`.

    Raises:
        FileNotFoundError: There is no saved model.
        InputError: It is of another class, or damaged.
    """
    folder = model_folder(path)
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{path}: expected a folder with config.json and model.safetensors")
    try:
        name = json.loads(config.read_text()).get("model")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{config}: expected a JSON object ({error})") from error
    if name not in kinds:
        raise InputError(f"{path}: expected one of {', '.join(kinds)}, it describes {name or 'no model of dqcore'}")
    return kinds[name].from_pretrained(folder)


def fingerprint(path: Path) -> str:
    """A hash of a saved tokenizer's config and weights, by which it can be told from others."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        digest.update((model_folder(path) / name).read_bytes())
    return digest.hexdigest()


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
    if identity and prior.config.tokenizer and prior.config.tokenizer != identity:
        raise InputError(
            f"tokenizer: the prior was trained on the codes of tokenizer {prior.config.tokenizer[:12]}, "
            f"this is {identity[:12]}"
        )
