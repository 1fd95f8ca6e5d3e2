"""Sums of embeddings, bit for bit as PyTorch adds them, on every route."""

import pytest
import torch

from dqcore.ops.add_rows import add_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dim", [1, 96, 1100])
def test_sums_are_pytorchs(route, dtype, dim):
    tables = [torch.randn(rows, dim, dtype=dtype, device=route) for rows in (9, 20, 3, 2)]
    token = torch.stack([torch.randint(0, len(table), (5,)) for table in tables], 1).to(route)
    indices = [token[:, 0], token[:, 1], token[:, 2].int(), token[:, 3]]  # strided, as a walk keeps them
    looked_up = [table[index.long()] for table, index in zip(tables, indices, strict=True)]
    assert torch.equal(add_rows(None, tables, indices), ((looked_up[0] + looked_up[1]) + looked_up[2]) + looked_up[3])
    x = torch.randn(5, 2 * dim, dtype=dtype, device=route)[:, ::2] if dim > 1 else looked_up[0]
    assert torch.equal(add_rows(x, tables[1:2], indices[1:2]), x + looked_up[1])
    assert torch.equal(add_rows(None, tables[:1], indices[:1]), looked_up[0])


def test_indices_beyond_a_table_read_its_last_row(route):
    tables = [torch.randn(4, 8, device=route), torch.randn(3, 8, device=route)]
    indices = [torch.tensor([4, 99], device=route), torch.tensor([3, 0], dtype=torch.int32, device=route)]
    expected = tables[0][3] + tables[1][torch.tensor([2, 0], device=route)]
    assert torch.equal(add_rows(None, tables, indices), expected)


def test_dtypes_that_differ_and_nothing_at_all(route):
    x, table = torch.randn(2, 8, device=route), torch.randn(4, 8, device=route).bfloat16()
    index = torch.tensor([3, 0], device=route)
    assert torch.equal(add_rows(x, [table], [index]), x + table[index])
    assert add_rows(x[:0], [table], [index[:0]]).shape == (0, 8)


def test_it_is_an_op(route):
    args = (None, [torch.randn(4, 8, device=route)] * 2, [torch.tensor([3, 0], device=route)] * 2)
    torch.library.opcheck(torch.ops.dqcore.add_rows, args, test_utils=("test_schema", "test_faketensor"))
