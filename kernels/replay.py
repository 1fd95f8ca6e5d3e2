"""Calls of a launcher that are made again: what the first one launched, with the addresses of new tensors.

What a launcher does on the host (sizes, tiles, buffers, views, constants) follows from the shapes, strides, dtypes and
alignment of its arguments, never from their values. When arguments like those of an earlier call come, the call is
noted: its launches, and where in arguments and buffers the addresses lie that they took. From then on such calls make
the buffers, all those that nobody else sees as one, and launch the same. It is a CUDA graph's idea for the host alone:
the tensors may be others each time.

A call is not noted if it does anything but allocate, look at parts of tensors and launch (``refuse``), and is made
without notes wherever ``launch.is_free`` says no, and in the interpreter. Constants of a file that change call for
``forget``. Triton asks of every tensor whether a GPU can reach it; the call that is noted was asked, and those that
follow have their tensors on the same device.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import triton
from torch import Tensor

from dqcore.kernels.common import INTERPRETED
from dqcore.kernels.launch import is_free, noting
from dqcore.kernels.recording import Recorder, Replay

Function = TypeVar("Function", bound=Callable[..., Any])

MOST = 512  # calls that are kept

#: By function and kind of arguments: None after one call, then its launches, or False where they cannot be noted.
_calls: dict[tuple, Replay | bool | None] = {}
#: Held by the thread that notes a call: PyTorch keeps whether a mode is active for all threads together, and where two
#: enter modes at once it may stay so for good, which keeps ``torch.compile`` from compiling.
_turn = threading.Lock()


def replayed(function: Function) -> Function:
    """``function``, whose calls are noted when they come again; tensors, numbers, and tuples and lists of them."""
    if INTERPRETED:
        return function

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if not is_free() or getattr(noting, "recorder", None) is not None:
            return function(*args)
        given: list[Tensor] = []
        device = triton.runtime.driver.active.get_current_device()
        key = (function, device, *[_kind(value, given) for value in args])
        call = _calls.get(key, True)
        if isinstance(call, Replay):
            try:
                result = call.again(given) if call.holds() else False
            except torch.OutOfMemoryError:  # before any launch: one buffer may not fit where several small ones do
                result = False
            return function(*args) if result is False else result
        if call is None and _turn.acquire(blocking=False):
            try:
                result, noted = _noted(function, args, given, device)
            finally:
                _turn.release()
            if key in _calls:  # not forgotten since
                _calls[key] = noted
            return result
        if call is True:  # most calls that never come again leave no more than this
            if len(_calls) >= MOST:
                _calls.clear()
            _calls[key] = None
        return function(*args)

    return cast(Function, run)


def forget() -> None:
    """Note all calls anew: something changed that is no argument."""
    _calls.clear()


def refuse() -> None:
    """The call that is being made does what cannot be noted."""
    if (recorder := getattr(noting, "recorder", None)) is not None:
        recorder.refuse()


def _kind(value: Any, given: list[Tensor]) -> Any:
    """All of a value but a tensor's address and numbers; its tensors go to ``given``."""
    kind = type(value)
    if kind is tuple or kind is list:
        return (kind, *[_kind(part, given) for part in value])
    if kind is Tensor or isinstance(value, Tensor):  # of any other type this takes three times as long
        given.append(value)
        return value.dtype, value.shape, value.stride(), value.data_ptr() & 15, value.get_device()
    return (kind, *[_kind(part, given) for part in value]) if isinstance(value, tuple) else (kind, value)


def _noted(function: Any, args: tuple, given: list[Tensor], device: int) -> tuple[Any, Replay | bool]:
    """The result of a call, and its launches if they can be noted."""
    recorder = Recorder(given, device)
    noting.recorder = recorder
    try:
        with recorder:
            result = function(*args)
    finally:
        noting.recorder = None
    return result, recorder.replay(result)
