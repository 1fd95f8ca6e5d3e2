"""What several kernels share: facts about the machine, and small jit functions."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Whether kernels run in Triton's interpreter: decided, as Triton does, when they are imported.
INTERPRETED: bool = triton.knobs.runtime.interpret


def on_device(tensor: Tensor) -> Any:
    """The context in which a kernel on ``tensor`` is launched."""
    return torch.cuda.device_of(tensor)


def architecture() -> int:
    """What a launch compiles for on the current device, as 90 for compute capability 9.0; 80 where interpreted."""
    return 80 if INTERPRETED else int(triton.runtime.driver.active.get_current_target().arch)


@triton.jit
def bound(count, INTERPRETED: tl.constexpr):
    """A loop's run-time bound; where interpreted a plain int, since Triton 3.6 and numpy 2.4 cannot make one of it."""
    if INTERPRETED:
        return count.handle.data.item()
    else:
        return count


@triton.jit
def place(token, regions, height, width, side):
    """Image, row and column of each token of a map, int64.

    Without ``regions`` (None) tokens count the map's cells row by row. With it they count the ``side x side`` cells of
    the regions it lists, each an index into the row-major ``(B, height / side, width / side)`` grid of regions.
    """
    if regions is None:
        line = token // width
        return (line // height).to(tl.int64), (line % height).to(tl.int64), (token % width).to(tl.int64)
    else:
        region = tl.load(regions + token // (side * side))
        cell = token % (side * side)
        line = region // (width // side)
        image = line // (height // side)
        row = (line % (height // side)) * side + cell // side
        column = (region % (width // side)) * side + cell % side
        return image.to(tl.int64), row.to(tl.int64), column.to(tl.int64)
