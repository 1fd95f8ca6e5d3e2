"""What several kernels share: facts about the machine, and small jit functions."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Whether kernels run in Triton's interpreter: decided, as Triton does, when they are imported.
INTERPRETED: bool = triton.knobs.runtime.interpret
#: The same for kernels, which may read a global only if it is a constant of Triton.
IN_INTERPRETER = tl.constexpr(INTERPRETED)


def on_device(tensor: Tensor) -> Any:
    """The context in which a kernel on ``tensor`` is launched."""
    return torch.cuda.device_of(tensor)


def architecture() -> int:
    """Compute capability that a launch compiles for, as 90 for 9.0; 80 where kernels are interpreted."""
    return 80 if INTERPRETED else int(triton.runtime.driver.active.get_current_target().arch)


def processors() -> int:
    """Multiprocessors of the current device. Launches are sized by them; results do not depend on them."""
    return torch.cuda.get_device_properties().multi_processor_count if torch.cuda.is_available() else 1


def cdiv(count: int, size: int) -> int:
    """How many blocks of ``size`` hold ``count``; this and the next take the host a tenth of the time of Triton's."""
    return -(-count // size)


def next_power_of_2(number: int) -> int:
    """The least power of two from ``number`` up; 0 for 0."""
    return 1 << (number - 1).bit_length() if number > 0 else 0


@triton.jit
def bound(count):
    """``count`` as the bound of a loop.

    The interpreter gets a plain int: it cannot turn a tensor into one itself with Triton 3.6 and numpy 2.4.
    """
    if IN_INTERPRETER:
        return count.handle.data.item()
    else:
        return count


@triton.jit
def widen(block):
    """``block`` in float32, exactly: Triton's interpreter loses subnormal bfloat16 when it converts."""
    if IN_INTERPRETER and block.dtype == tl.bfloat16:
        return (block.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return block.to(tl.float32)


@triton.jit
def narrow(block, dtype: tl.constexpr):
    """float32 ``block`` in ``dtype``, to the nearest: to bfloat16, Triton's interpreter only cuts bits off."""
    if IN_INTERPRETER and dtype == tl.bfloat16:
        bits = block.to(tl.uint32, bitcast=True)
        bits = tl.where(block == block, bits + 0x7FFF + (bits >> 16 & 1), 0x7FC00000)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return block.to(dtype)


@triton.jit
def multiplicand(block):
    """``block`` as ``tl.dot`` takes it: as it is, but float32 in the interpreter, whose numpy has no bfloat16."""
    return block.to(tl.float32) if IN_INTERPRETER else block
