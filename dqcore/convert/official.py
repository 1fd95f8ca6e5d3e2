"""What the converters share: reading a checkpoint, renaming its tensors by rules, and checking names and shapes."""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.errors import InputError

__all__ = [
    "Rule",
    "check_config",
    "load_official",
    "missing_keys_named",
    "official_names",
    "state_under",
    "translate_state",
]

#: Where a checkpoint keeps its tensors; the first that is there is read.
_PLACES = ("state_dict", "ema", "model")
#: What DistributedDataParallel and ``torch.compile`` put before the names of all of a model's tensors.
_WRAPPERS = ("module.", "_orig_mod.")
_EXPECTED = {"size": "a whole number from 1 up", "sizes": "a list of whole numbers from 1 up", "mapping": "a mapping"}
#: A regular expression on a name, and its replacement as for ``re.sub``.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def load_official(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint file, ``.safetensors`` or ``.ckpt``/``.pt``/``.pth``; nothing in it is ever executed.

    Returns:
        Its state dict; of a whole checkpoint the dict under ``state_dict``, ``ema`` or ``model``, in this order.
        Objects of other kinds, such as Lightning's callbacks, are passed over.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint of tensors.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    if Path(path).suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path}: not a safetensors file ({error})") from error
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_inert(path)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types of exception, depending on what is wrong with the file
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        raise InputError(f"{path}: not a checkpoint of tensors alone ({reason})") from error
    return _state(content)


def _check_archive(path: str | os.PathLike[str]) -> None:
    """Raise if a checksum in a zip archive, such as PyTorch writes, is wrong: PyTorch itself does not look at them."""
    if not zipfile.is_zipfile(path):  # an older format of PyTorch's, or something else, which reading it will tell
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # of a damaged file, anything
        raise InputError(f"{path}: damaged ({error})") from error
    if damaged is not None:
        raise InputError(f"{path}: damaged, the checksum of {damaged} in it is wrong")


class _Inert:
    """Stands in for an object that must not be loaded, such as a callback of Lightning; it does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _inert(path: str | os.PathLike[str]) -> list[Any]:
    """What :func:`torch.load` would refuse, each to be read as an object that does nothing."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file that is no archive; reading it says what is wrong
        return []
    return [(_Inert, name) for name in names]


def state_under(content: Any, prefix: str) -> dict[str, Any]:
    """The tensors of one part of a checkpoint.

    Args:
        content: A state dict, or a Lightning checkpoint that holds one under ``state_dict``.
        prefix: How the names of the part begin, such as ``"first_stage_model."``.

    Returns:
        The tensors whose names have the prefix, named without it; all of them where no name has it.

    Raises:
        ValueError: It is neither.
    """
    state = _state(content)
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return part or state


def _state(content: Any) -> dict[str, Any]:
    whole = content if isinstance(content, Mapping) else {}
    state = next((whole[name] for name in _PLACES if isinstance(whole.get(name), Mapping)), content)
    if not isinstance(state, Mapping) or not all(_is_named(*item) for item in state.items()):
        raise InputError("state_dict: expected names and tensors, or a checkpoint with a state_dict")
    return _unwrapped(dict(state))


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """The names without what wrappers of the whole model put before them."""
    for wrapper in _WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            return _unwrapped({name.removeprefix(wrapper): tensor for name, tensor in state.items()})
    return state


def _is_named(name: Any, tensor: Any) -> bool:
    return isinstance(name, str) and isinstance(tensor, Tensor)


@contextlib.contextmanager
def missing_keys_named() -> Iterator[None]:
    """Turn the KeyError of a configuration without a key into a message that names the key."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"config: {error.args[0]} is missing") from error


def check_config(config: Any, kinds: Mapping[str, str]) -> None:
    """Raise unless a configuration is a mapping whose values are of the right kind; keys may be missing.

    Args:
        config: The configuration.
        kinds: Names of keys to ``"size"``, a whole number from 1 up; ``"sizes"``, a list of such; or ``"mapping"``.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"config: expected a mapping of settings, got {type(config).__name__}")
    for name, kind in kinds.items():
        if name in config and not _is_a(kind, config[name]):
            raise InputError(f"config: {name}: expected {_EXPECTED[kind]}, got {config[name]!r}")


def _is_a(kind: str, value: Any) -> bool:
    if kind == "sizes":
        return isinstance(value, Sequence) and all(_is_a("size", item) for item in value)
    if kind == "mapping":
        return isinstance(value, Mapping)
    return type(value) is int and value >= 1


def official_names(name: str, rules: Sequence[Rule]) -> tuple[str, ...]:
    """The authors' names of one of our tensors.

    Args:
        name: Our name.
        rules: Applied one after the other. A replacement may hold several names with ``|`` between them: a fused or
            stacked tensor of ours stands for several of theirs, in this order.
    """
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return tuple(name.split("|"))


def translate_state(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    rules: Sequence[Rule],
    reshape: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Our tensors, filled from theirs.

    Args:
        state: Their names to tensors.
        own: Our names to tensors of the right shape and dtype.
        rules: From our names to theirs, see :func:`official_names`.
        reshape: Given one of our names and its tensor, joined from theirs, brings the tensor into our layout.

    Raises:
        ValueError: Tensors are missing, left over or of the wrong shape; the message names them.
    """
    names = {name: official_names(name, rules) for name in own}
    _check_names(expected={part for parts in names.values() for part in parts}, found=set(state))
    ours = {}
    for name, parts in names.items():
        try:
            tensor = torch.cat([state[part] for part in parts]) if len(parts) > 1 else state[parts[0]]
        except RuntimeError as error:
            raise InputError(f"state_dict: {', '.join(parts)} do not fit together ({error})") from error
        tensor, wanted = reshape(name, tensor), own[name]
        if tensor.shape != wanted.shape:
            raise InputError(
                f"state_dict: {name} would have shape {tuple(tensor.shape)}, config wants {tuple(wanted.shape)}"
            )
        ours[name] = tensor.to(wanted.dtype)
    return ours


def _check_names(expected: set[str], found: set[str]) -> None:
    problems = [
        f"{problem} {', '.join(sorted(names)[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        for problem, names in (("lacks", expected - found), ("has no place for", found - expected))
        if names
    ]
    if problems:
        raise InputError(f"state_dict: under this config the model {'; '.join(problems)}")
