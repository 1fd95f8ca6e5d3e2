"""The files of a saved model: its config as JSON, its weights as safetensors."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.files.sealed import seal_of
from dqcore.files.tensors import metadata_of
from dqcore.models.checks import check_finite, check_shapes, check_types

__all__ = ["check_saved", "config_from_dict", "fields_of", "read_config", "same_as_saved", "state_to_save", "unknown"]

Config = TypeVar("Config")

#: What weights may be saved in.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: In the names of the weights of a part that ``torch.compile`` returned.
_COMPILED = "_orig_mod."


def config_from_dict(config: type[Config], fields: Mapping[str, Any], where: str) -> Config:
    """A config from the fields of a JSON object (lists become tuples); an unknown field is an error."""
    known = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise InputError(f"{where}: {unknown('field', name, known)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    try:
        return config(**values)
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{where}: {error}") from error


def state_to_save(model: Any, dtype: torch.dtype | None, where: str) -> dict[str, Tensor]:
    """The weights of a model, by the names that a model of its config has.

    Args:
        model: Parts of it may be what :func:`torch.compile` returned; their weights get the names from before that.
        dtype: What floating-point weights become; None: as they are.
        where: What an error's message begins with.

    Raises:
        InputError: ``dtype`` is none, a weight cannot be written, or a model of the config has other weights.
    """
    if dtype not in (None, *_DTYPES):
        raise InputError(f"dtype: expected a floating-point one of 16 bits up, such as torch.float16, got {dtype!r}")
    state = {name.replace(_COMPILED, ""): tensor for name, tensor in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        as_built = type(model)(model.config)
    check_shapes(as_built, {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
    state = {name: _stored(name, tensor, dtype, where) for name, tensor in state.items()}
    check_finite(state, where)
    return state


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None, where: str) -> Tensor:
    """A tensor as it is written, in another dtype if that holds its finite values."""
    if tensor.is_meta:
        raise InputError(f"{where}: {name} is on the meta device, without values")
    tensor = tensor.detach().cpu().contiguous()
    if dtype is None or not tensor.is_floating_point():
        return tensor
    if not (tensor.to(dtype).isfinite() | ~tensor.isfinite()).all():
        raise InputError(f"dtype: {name} has values beyond the range of {dtype}")
    return tensor.to(dtype)


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a config by name."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def unknown(kind: str, name: str, known: Any) -> str:
    """The message that there is no such name among those that are known, with the nearest one."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
    hint = f", did you mean {nearest[0]!r}?" if nearest else ""
    return f"there is no {kind} {name!r}{hint}"


def read_config(path: Path, cls: Any) -> Any:
    """The config of a saved model of this class."""
    try:
        fields = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    if (model := fields.pop("model", None)) != cls.__name__:
        raise InputError(f"{path}: expected a {cls.__name__}, it describes {model or 'no model of dqcore'}")
    check_types(cls.Config, fields, str(path))
    return config_from_dict(cls.Config, fields, str(path))


def check_saved(config: Path, weights: Path) -> None:
    """Raise unless a config is the one that weights were saved with; weights of earlier versions do not know theirs.

    Raises:
        InputError: It is another one.
    """
    known = metadata_of(weights).get("config")
    if known is not None and known != seal_of(json.loads(config.read_text())):
        raise InputError(
            f"{config}: damaged, or changed by hand since the weights were saved with it; "
            "a config that was changed on purpose is saved with them anew (save_pretrained)"
        )


def same_as_saved(model: Any, config: Path, weights: Path) -> bool:
    """Whether a model is, value for value, what these files hold."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(weights)
        if read_config(config, type(model)) != model.config:
            return False
    except (OSError, SafetensorError, InputError):
        return False
    own = model.state_dict()
    return state.keys() == own.keys() and all(
        tensor.shape == state[name].shape
        and torch.allclose(tensor.cpu().double(), state[name].double(), rtol=0, atol=0, equal_nan=True)
        for name, tensor in own.items()
    )
