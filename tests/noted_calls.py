"""Launchers whose calls are noted as on a GPU, in the interpreter: by addresses, as a GPU takes them."""

import ctypes

import pytest
import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import _disable_current_modes

from dqcore.kernels import common, replay
from dqcore.kernels import launch as launch_module
from dqcore.kernels.launch import Known, launch
from dqcore.kernels.recording import Recording
from dqcore.kernels.replay import replayed

#: Where calls are noted at all.
MARKS = [
    pytest.mark.skipif(not common.INTERPRETED, reason="a GPU makes its calls again by itself"),
    pytest.mark.skipif(
        not launch_module.SUPPORTED, reason="no call is made again with a Triton that makes every launch itself"
    ),
]


def at(address, like):
    """The memory at an address as a tensor that kernels take for ``like``."""
    if not isinstance(like, torch.Tensor):
        return tuple(map(at, address, like)) if isinstance(like, tuple) else address
    size = like.untyped_storage().nbytes() // like.element_size() - like.storage_offset()
    if not like.numel():
        return like
    memory = (ctypes.c_char * (size * like.element_size())).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype)


def interpreted(kernel, grid, *args, **constants):
    """A launch in the interpreter, and how to make it again with addresses in the place of tensors."""

    def run(x, y, z, stream, function, metadata, about, enter, leave, *values):
        run.times += 1
        kernel[x, y, z](*map(at, values, args), **constants)

    run.times = 0
    with _disable_current_modes():  # the interpreter computes with PyTorch, too
        kernel[grid](*args, **constants)
    if (recorder := getattr(launch_module.noting, "recorder", None)) is not None:
        recorder.note(Known(run, None, None, (), None, None), grid, 0, args)


def noted():
    return [call for call in replay._calls.values() if isinstance(call, Recording)]


def last_of(function, problems):
    """What the last call gives: the third is the first that is made again."""
    again, (*before, last) = replayed(function), problems
    for given in before:
        again(*given)
    return again(*last)


@triton.jit
def add_kernel(x, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, tl.load(out + i) + tl.load(x + i))


@triton.jit
def clear_kernel(out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE), tl.zeros([SIZE], tl.float32))


def add(x, to):
    launch(add_kernel, (1,))(x, to, SIZE=2)


def by_parts(x):
    """The sum of two buffers that begin as anything, in one that is returned."""
    one, other = torch.empty(2, 2).unbind()
    out = x.new_empty(2)
    for target in (one, other, out):
        launch(clear_kernel, (1,))(target, SIZE=2)
    add(x, one)
    add(x, other)
    add(one, out)
    add(other, out)
    return [out]


def vectors(number=3, size=2):
    return [(torch.randn(size),) for _ in range(number)]
