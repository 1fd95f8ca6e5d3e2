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


def processors() -> int:
    """Multiprocessors of the current device, by which launches are sized; what they compute does not depend on it."""
    return torch.cuda.get_device_properties().multi_processor_count if torch.cuda.is_available() else 1


@triton.jit
def bound(count, INTERPRETED: tl.constexpr):
    """A loop's run-time bound; where interpreted a plain int, since Triton 3.6 and numpy 2.4 cannot make one of it."""
    if INTERPRETED:
        return count.handle.data.item()
    else:
        return count
