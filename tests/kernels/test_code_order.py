"""Codes in order: equal to a stable sort, with one program and with several."""

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter is for machines without a GPU", allow_module_level=True)

from dqcore.kernels import code_order

KEYS = {
    "random": lambda number, size: torch.randint(-1, size, (number,), dtype=torch.int32),
    "none": lambda number, size: torch.full((number,), -1, dtype=torch.int32),
    "too large": lambda number, size: torch.randint(0, 3 * size, (number,), dtype=torch.int32),
    "one": lambda number, size: torch.full((number,), size - 1, dtype=torch.int32),
}


@pytest.mark.parametrize("programs", [1, 8])
@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("number,size", [(0, 3), (1, 1), (700, 1100)])
def test_order_is_that_of_a_stable_sort(run_together, number, size, kind, programs):
    keys = KEYS[kind](number, size)
    if programs > 1:
        run_together(programs, code_order)
    found, order, offsets, counts = code_order.order_by_code(keys, size)
    buckets = torch.where((keys < 0) | (keys >= size), size, keys)
    expected, places = buckets.sort(stable=True)
    assert torch.equal(order, places)
    assert torch.equal(found, torch.where(expected == size, -1, expected).int())
    assert torch.equal(offsets, torch.searchsorted(expected, torch.arange(size + 1, dtype=torch.int32)))
    assert torch.equal(counts, torch.bincount(buckets, minlength=size + 1)[:size].float())
