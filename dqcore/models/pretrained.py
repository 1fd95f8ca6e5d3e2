"""Saving and loading of models: a folder with ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from dqcore.errors import InputError
from dqcore.files import write_json
from dqcore.models.checks import build, check_finite, check_shapes, check_types
from dqcore.models.weights import weights_folder
from dqcore.tensor_files import load_tensors, save_tensors, tensor_shapes

__all__ = ["Pretrained", "config_from_dict", "download"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: What a repository on the Hugging Face Hub is named by, before its owner and name.
HUB = "hf:"

Model = TypeVar("Model", bound="Pretrained")
Config = TypeVar("Config")


class Pretrained(nn.Module):
    """A model that is built from one frozen dataclass, has named presets, and saves and loads itself.

    Subclasses set ``Config`` and ``PRESETS`` and take a config as their only argument.
    """

    Config: ClassVar[type[Any]]
    PRESETS: ClassVar[Mapping[str, Any]]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.check_config(config)
        self.config = config

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raise TypeError unless ``config`` is of this class's ``Config``."""
        if not isinstance(config, cls.Config):
            raise TypeError(f"config: expected a {cls.Config.__name__}, got {type(config).__name__}")

    @classmethod
    def from_preset(cls: type[Model], name: str, *, pretrained: bool = False, **overrides: Any) -> Model:
        """A new model with random weights, or one with the weights that come with the package.

        Args:
            name: A key of ``PRESETS``.
            pretrained: Load the weights that come with the package for this preset, in evaluation mode.
            **overrides: Fields of the config that replace the preset's; not with ``pretrained``.

        Raises:
            InputError: There is no such preset or field, and the message names the most similar one; or the preset has
                no weights.
        """
        if name not in cls.PRESETS:
            raise InputError(f"name: {_unknown('preset', name, cls.PRESETS)}")
        if pretrained:
            if overrides:
                raise InputError(f"{next(iter(overrides))}: expected no change of the config of pretrained weights")
            return cls.from_pretrained(weights_folder(name))
        fields = {**_fields(cls.PRESETS[name]), **overrides}
        return cls(config_from_dict(cls.Config, fields, f"preset {name}"))

    def save_pretrained(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write ``model.safetensors`` and ``config.json`` into the folder ``path``, which is made if it is missing.

        Each file is written under another name, flushed to disk and renamed, so that a killed run never leaves half a
        file.

        Args:
            path: The folder.
            dtype: What floating-point weights are stored in, such as ``torch.float16`` for half the size; None: as they
                are. :meth:`from_pretrained` gives float32 again.

        Raises:
            InputError: A weight is not finite, or beyond the range of ``dtype``.
        """
        folder = Path(path)
        state = {name: _stored(name, tensor, dtype) for name, tensor in self.state_dict().items()}
        check_finite(state, f"{folder}: not saved")
        config = {"model": type(self).__name__, **_fields(self.config)}
        save_tensors(folder / WEIGHTS, state)
        write_json(folder / CONFIG, config)

    @classmethod
    def from_pretrained(cls: type[Model], path: str | os.PathLike[str]) -> Model:
        """Load a model in evaluation mode, on the CPU.

        Args:
            path: A folder that :meth:`save_pretrained` wrote, or ``hf:owner/name`` of such a repository on the Hugging
                Face Hub.

        Raises:
            FileNotFoundError: There is no such folder or repository, or a file is missing in it.
            InputError: It holds another model, a config with unknown fields, or weights that are damaged, not finite
                or do not fit the config.
        """
        folder = Path(path) if os.path.exists(path) else download(os.fspath(path))
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{path}: expected a folder with {CONFIG} and {WEIGHTS}, {name} is missing")
        weights, config = folder / WEIGHTS, _read_config(folder / CONFIG, cls)
        model = build(cls, config, tensor_shapes(weights), str(weights))
        state = load_tensors(weights)
        check_shapes(model, {name: tuple(tensor.shape) for name, tensor in state.items()}, str(weights))
        check_finite(state, str(weights))
        model.load_state_dict(state)
        return model.eval()


def config_from_dict(config: type[Config], fields: Mapping[str, Any], where: str) -> Config:
    """A config from the fields of a JSON object (lists become tuples); an unknown field is an error."""
    known = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise InputError(f"{where}: {_unknown('field', name, known)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    try:
        return config(**values)
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{where}: {error}") from error


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if dtype is None or not tensor.is_floating_point():
        return tensor
    if not (tensor.to(dtype).isfinite() | ~tensor.isfinite()).all():
        raise InputError(f"dtype: {name} has values beyond the range of {dtype}")
    return tensor.to(dtype)


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _unknown(kind: str, name: str, known: Any) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
    hint = f", did you mean {nearest[0]!r}?" if nearest else ""
    return f"there is no {kind} {name!r}{hint}"


def _read_config(path: Path, cls: type[Pretrained]) -> Any:
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


def download(repository: str) -> Path:
    """Download a model from the Hugging Face Hub; for a prior, also the tokenizer that was saved with it.

    Args:
        repository: ``hf:owner/name``. Anything else is no name of a repository: a mistyped path asks nobody.

    Returns:
        The folder with its files.

    Raises:
        FileNotFoundError: There is no such repository, or it cannot be reached.
    """
    if not repository.startswith(HUB):
        raise FileNotFoundError(
            f"{repository}: no such folder; a model on the Hugging Face Hub is named {HUB}owner/name"
        )
    missing = f"{repository}: no such repository on the Hugging Face Hub"
    name = repository.removeprefix(HUB)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{repository}: expected {HUB}owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        wanted = [CONFIG, WEIGHTS, "classes.json", "code_tables*.safetensors", "tokenizer/*"]
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(f"{missing} ({str(error).splitlines()[0]})") from error
