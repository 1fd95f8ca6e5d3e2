"""All programs of one launch wait for each other, so that one launch does what would else take several.

The grid must be resident as a whole: it has at most a program for each multiprocessor, and is launched cooperatively.
In the interpreter, which runs one program after the other, it is one program.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from dqcore.kernels import common

MOST = 128


@triton.jit
def wait_for_all(arrived, turn, PROGRAMS: tl.constexpr):
    """Wait until every program of the grid is here for the ``turn``-th time; then what all wrote before can be read.

    ``arrived`` begins as 0. Read with ``cache_modifier=".cg"`` what others wrote: the first cache is not coherent.
    """
    if PROGRAMS > 1:
        tl.debug_barrier()
        tl.atomic_add(arrived, 1, sem="acq_rel")
        while tl.atomic_add(arrived, 0, sem="acq_rel") < turn * PROGRAMS:
            pass
        tl.debug_barrier()


def programs(most: int) -> int:
    """A power of two: how many programs to launch for work that at most so many can share."""
    if common.INTERPRETED:
        return 1
    fit = min(most, MOST, common.processors())
    return 1 << max(0, fit.bit_length() - 1)


def cooperative() -> dict[str, Any]:
    """The launch option, which the interpreter does not know."""
    return {} if common.INTERPRETED else {"launch_cooperative_grid": True}
