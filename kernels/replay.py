"""Launchers whose calls are replayed: the host prepares a kind of call once, and from then on only launches.

What a launcher does on the host (sizes, tiles, buffers, views, constants) takes longer than a small kernel runs. It
follows from the shapes, strides, dtypes and alignment of the arguments, and from numbers among them, but never from
what tensors hold nor where they lie. So :func:`replayed` keeps a recording (``recording``) for each kind of arguments:

1. The first call of a kind is an ordinary one. Most kinds never come again and cost no more than this.
2. The second one is recorded: it runs as ever, while what it allocates and launches is written down.
3. All others are replays: allocate the same, launch the same, with the addresses of their own tensors. This is the idea
   of a CUDA graph for the host alone; the tensors may be others each time.

A call is not replayed but made as ever

- if it could not be recorded: it does something other than allocating, making views and launching, such as a product by
  PyTorch. A launcher that does so where a recorder cannot see it calls :func:`refuse`;
- while Triton has to do more than launch (``launch.is_free``), within a call that is being recorded, or interpreted;
- if a global that a kernel was compiled with has changed, if memory is short, or if the allocator's addresses are odd.

Constants of a file that a launcher reads are no arguments: who changes them calls :func:`forget`. Triton asks of every
tensor whether a GPU can reach it; it asked in the call that was recorded, and the device is part of the kind.
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
from dqcore.kernels.recorder import Recorder
from dqcore.kernels.recording import Recording

Function = TypeVar("Function", bound=Callable[..., Any])

MOST = 512  # kinds of calls that are kept

#: By launcher, device and kind of arguments: None after the first call, then its recording, or False if it was refused.
_calls: dict[tuple, Recording | bool | None] = {}
#: Held by the thread that records: PyTorch keeps whether a mode is active for all threads together, and where two
#: enter modes at once it may stay so for good, which keeps ``torch.compile`` from compiling.
_turn = threading.Lock()


def replayed(function: Function) -> Function:
    """A launcher whose calls are replayed from the third of a kind on.

    Its arguments are tensors, hashable values such as numbers, and tuples and lists of these, none by keyword.
    """
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
        if isinstance(call, Recording):
            try:
                result = call.replay(given) if call.holds() else False
            except torch.OutOfMemoryError:  # before any launch: one buffer may not fit where several small ones do
                result = False
            return function(*args) if result is False else result
        if call is None and _turn.acquire(blocking=False):
            try:
                result, recording = _recorded(function, args, given, device)
            finally:
                _turn.release()
            if key in _calls:  # not forgotten since
                _calls[key] = recording
            return result
        if call is True:  # the first of its kind
            if len(_calls) >= MOST:
                _calls.clear()
            _calls[key] = None
        return function(*args)

    return cast(Function, run)


def forget() -> None:
    """Drop all recordings: something that launchers read has changed and is no argument of theirs."""
    _calls.clear()


def refuse() -> None:
    """Say that the present call does what a replay would leave out; does nothing unless it is being recorded."""
    if (recorder := getattr(noting, "recorder", None)) is not None:
        recorder.refuse()


def _kind(value: Any, given: list[Tensor]) -> Any:
    """What two arguments must share for one recording; the tensors are added to ``given``.

    Of a tensor all but its address and contents; of a list or tuple its parts; any other value itself.
    """
    kind = type(value)
    if kind is tuple or kind is list:
        return (kind, *[_kind(part, given) for part in value])
    if kind is Tensor or isinstance(value, Tensor):  # of any other type this takes three times as long
        given.append(value)
        return value.dtype, value.shape, value.stride(), value.data_ptr() & 15, value.get_device()
    return (kind, *[_kind(part, given) for part in value]) if isinstance(value, tuple) else (kind, value)


def _recorded(function: Any, args: tuple, given: list[Tensor], device: int) -> tuple[Any, Recording | bool]:
    """The result of a call, and its recording; False if it was refused."""
    recorder = Recorder(given, device)
    noting.recorder = recorder
    try:
        with recorder:
            result = function(*args)
    finally:
        noting.recorder = None
    return result, recorder.recording(result)
