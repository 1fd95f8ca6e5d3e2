"""A kernel that leaves its tensors fails in the interpreter, wherever the address happens to point."""

import pytest
import torch

from dqcore import backends

pytest.importorskip("triton")
if not backends.interpreting():
    pytest.skip("watches Triton's interpreter", allow_module_level=True)

import triton
import triton.language as tl


@triton.jit
def _copy(pair, out, number, KIND: tl.constexpr):
    x, step = pair
    i = tl.arange(0, 8)
    if KIND == "load":
        tl.store(out + i, tl.load(x + step * i, mask=i < number, other=0), mask=i < 4)
    elif KIND == "scalar":
        tl.store(out, tl.load(x + step * number))
    elif KIND == "store":
        tl.store(out + i, tl.load(x), mask=i < number)
    elif KIND == "atomic":
        tl.atomic_add(out + i, 1, mask=i < number)
    else:
        tl.atomic_cas(out + number, 0, 1)


@pytest.mark.parametrize(("kind", "most"), [("load", 4), ("scalar", 3), ("store", 4), ("atomic", 4), ("exchange", 3)])
def test_what_lies_outside_is_found(kind, most):
    whole = torch.zeros(64, dtype=torch.int32)
    given = (whole[8:16][::2], 2), whole[32:36]
    _copy[(1,)](*given, most, kind)
    with pytest.raises(triton.runtime.errors.InterpreterError, match=r"1 of . addresses are in no tensor"):
        _copy[(1,)](*given, most + 1, kind)


def test_each_launch_has_its_own_tensors():
    """What an earlier launch was given, and another part of the same memory, are out of bounds."""
    whole = torch.zeros(64, dtype=torch.int32)
    _copy[(1,)]((whole, 1), whole[:8], 8, "load")
    with pytest.raises(triton.runtime.errors.InterpreterError, match="in no tensor"):
        _copy[(1,)]((whole[:7], 1), whole[32:], 8, "load")
