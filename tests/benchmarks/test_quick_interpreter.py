"""The quicker interpreter, which tests/conftest.py turns on, replaces and restores what the plain one does."""

import inspect
import math

import numpy as np
import pytest
import torch

from dqcore import backends

if not (backends.has_triton() and backends.interpreting()):
    pytest.skip("needs Triton's interpreter", allow_module_level=True)
import triton
import triton.language as tl
from triton.language.core import is_builtin
from triton.runtime import interpreter


@triton.jit
def helper(x):
    return tl.maximum(x, 0) + tl.sum(x, axis=0)


@triton.jit
def a_kernel(x, out, BLOCK: tl.constexpr):
    cells = tl.arange(0, BLOCK)
    tl.store(out + cells, helper(helper(tl.load(x + cells))))


def launched():
    x, out = torch.tensor([1.0, -2.0, 3.0, -4.0]), torch.empty(4)
    a_kernel[(1,)](x, out, BLOCK=4)
    return out.tolist()


def builtins():
    """Names of those of `tl` and its classes that are Triton's own."""
    return [{name for name, member in inspect.getmembers(place) if is_builtin(member)} for place in (tl, tl.tensor)]


def test_it_computes_the_same_and_leaves_tl_as_it_was(monkeypatch):
    before = builtins()
    first = launched()
    assert first == [-4.0, -4.0, -3.0, -4.0]  # of (-1, -2, 1, -2) after the first call
    assert builtins() == before and {"load", "store"} <= before[0] and "__add__" in before[1]
    searched, search = [], inspect.getmembers
    monkeypatch.setattr(inspect, "getmembers", lambda place, *rest: searched.append(place) or search(place, *rest))
    assert launched() == first
    assert searched.count(tl) == 1, "once a launch, not once a call"


def test_types_are_what_the_kinds_say():
    kinds = {tl.int1: bool, tl.float16: np.float16, tl.bfloat16: np.uint16, tl.float32: np.float32, tl.int64: np.int64}
    for _ in range(2):
        for kind, expected in [*kinds.items(), (tl.pointer_type(tl.float32), np.uint64)]:
            assert interpreter._get_np_dtype(kind) == expected
            assert interpreter._get_np_dtype(tl.block_type(kind, [4])) == expected


def test_types_and_tensors_say_the_same_when_they_are_made_again():
    kinds = [tl.float32, tl.int1, tl.pointer_type(tl.float32), tl.pointer_type(tl.float32, 3)]
    for _ in range(2):
        for kind in kinds:
            for shape in ([4], [2, 8], [8, 2]):
                block = tl.block_type(kind, shape)
                assert block.element_ty is kind and [*block.shape] == [*shape] and block.numel == math.prod(shape)
                assert all(str(part) in block.name for part in (kind, *shape))
                whole, cell = tl.tensor("all", block), tl.tensor("one", kind)
                assert (whole.handle, whole.type, whole.dtype) == ("all", block, kind)
                assert [size.value for size in whole.shape] == [*shape] and whole.numel.value == block.numel
                assert (cell.handle, cell.type, cell.dtype, len(cell.shape)) == ("one", kind, kind, 0)
                assert cell.numel.value == 1
    with pytest.raises(TypeError):
        tl.block_type(tl.float32, [])
