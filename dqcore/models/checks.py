"""Whether a saved model can be trusted: the values of its config, their sizes, and that its weights are finite."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["build", "check_finite", "check_shapes", "check_types"]

Model = TypeVar("Model", bound=torch.nn.Module)

#: Buffers that are NaN until a router is fitted.
_UNFITTED = ("thresholds", "scale")
#: A whole number in a config may be this large, or as large as the weights have numbers.
_SMALL = 1 << 16


def check_types(config: type[Any], fields: Mapping[str, Any], where: str) -> None:
    """Raise unless the values of a JSON object have the types of a config's fields.

    Raises:
        InputError: The message names the field.
    """
    hints = typing.get_type_hints(config)
    for name, value in fields.items():
        if name in hints and not _fits(value, hints[name]):
            kind = getattr(hints[name], "__name__", str(hints[name]).replace("typing.", ""))
            raise InputError(f"{where}: {name}: expected {kind}, got {str(value)[:60]!r}")


def _fits(value: Any, kind: Any) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) > 64:
            return False
        if args[-1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if kind is float:
        return (type(value) is int and abs(value) < 2**63) or (type(value) is float and math.isfinite(value))
    return type(value) is kind if kind in (int, bool, str, types.NoneType) else True


def build(make: Callable[[Any], Model], config: Any, shapes: Mapping[str, tuple[int, ...]], path: str) -> Model:
    """A model of a config, if the weights in a file are those of such a model; before that nothing is allocated.

    Args:
        make: The model's class.
        config: What the file of the config says.
        shapes: Shapes of the weights, by name.
        path: The file of the weights, for messages.

    Raises:
        InputError: A size is beyond what the weights have, the weights do not fit, or no model can be built.
    """
    _check_sizes(config, shapes, path)
    try:
        with torch.device("meta"):
            probe = make(config)
    except InputError:
        raise
    except Exception:  # the tables of a prior need values; its sizes are checked above
        pass
    else:
        check_shapes(probe, shapes, path)
    try:
        return make(config)
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: no model can be built from its config ({type(error).__name__}: {reason})") from error


def _check_sizes(config: Any, shapes: Mapping[str, tuple[int, ...]], path: str) -> None:
    """Raise if a number in a config asks for more than the weights have."""
    numbers = sum(map(math.prod, shapes.values()))
    sizes = [
        (name, size, len(shapes) if name.endswith(("layers", "blocks")) else max(numbers, _SMALL))
        for name, value in vars(config).items()
        for size in (value if isinstance(value, tuple) else (value,))
        if type(size) is int
    ]
    dim = getattr(config, "dim", 1)
    sizes += [
        (name, getattr(config, name) * dim, numbers)
        for name in ("codebook_size", "num_classes")
        if hasattr(config, name)
    ]
    if hasattr(config, "region_grid"):
        sizes += [("dim", dim**2, numbers), ("num_granularities", config.num_granularities, 15)]
        cells = math.prod(config.region_grid) << 2 * (min(config.num_granularities, 15) - 1)
        sizes.append(("region_grid", cells, max(numbers, _SMALL)))
    for name, size, limit in sizes:
        if abs(size) > limit:
            raise InputError(f"{name}: {getattr(config, name)} is too much for the {numbers} numbers of {path}")


def check_shapes(model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], path: str) -> None:
    """Raise unless the weights of a file have the names and shapes of a model's."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(own.keys() | shapes.keys()):
        if name not in shapes:
            raise InputError(f"{path}: the weights lack {name}")
        if name not in own:
            raise InputError(f"{path}: the config has no place for {name}")
        if shapes[name] != own[name]:
            raise InputError(f"{path}: {name} has shape {shapes[name]}, the config expects {own[name]}")


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise if weights hold NaN or an infinity; the thresholds of a router that is not fitted may be NaN.

    Raises:
        InputError: The message names the tensor.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
            continue
        if name.split(".")[-1] in _UNFITTED and not bool(tensor.isinf().any()):
            continue
        raise InputError(f"{where}: {name} holds NaN or infinite numbers")
