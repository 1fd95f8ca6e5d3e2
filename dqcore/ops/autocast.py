"""Autocast: whether it is on, a function without it, and weights that it casts once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch

from dqcore.backends import constant_before

__all__ = ["autocasting", "casting_once", "without_autocast"]

Function = TypeVar("Function", bound=Callable[..., Any])


def autocasting(device: str) -> bool:
    """Whether autocast is on for this type of device; there are types that know no autocast."""
    return _knows_autocast(device) and torch.is_autocast_enabled(device)


def without_autocast(function: Function) -> Function:
    """``function``, which computes in the dtypes of its tensors even where autocast is on."""

    @functools.wraps(function)
    def run(*args: Any, **named: Any) -> Any:
        given = (*args, *named.values())
        device = next((x.device.type for x in given if isinstance(x, torch.Tensor)), "cpu")
        if not autocasting(device):
            return function(*args, **named)
        with torch.autocast(device, enabled=False):
            return function(*args, **named)

    return cast(Function, run)


def casting_once(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast casts each weight once, however often it is entered; no weight may change within.

    Autocast forgets its casts when its outermost context ends. This context casts nothing itself: it is that outermost.
    """
    return torch.autocast(device.type, enabled=False) if _knows_autocast(device.type) else contextlib.nullcontext()


@constant_before
def _knows_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
