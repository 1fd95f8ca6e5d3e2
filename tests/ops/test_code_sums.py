import pytest
import torch

from dqcore.ops import code_sums
from dqcore.ops.reference.code_sums import code_sums_reference
from dqcore.testing import assert_close


@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 1, 1), (129, 16, 7), (300, 2, 257)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_matches_reference(route, shape, dtype):
    num, size, dim = shape
    x = torch.randn(dim, num, device=route, dtype=dtype).T
    codes = torch.randint(-1, size, (num,), device=route)
    counts, sums = code_sums(x, codes, size)
    expected_counts, expected_sums = code_sums_reference(x.double(), codes, size)
    assert torch.equal(counts.double(), expected_counts)
    assert counts.dtype == sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), expected_sums, rtol=1e-5, atol=1e-4)


def test_one_code_takes_everything(route):
    x = torch.randn(1000, 8, device=route)
    counts, sums = code_sums(x, torch.full((1000,), 3, device=route), 5)
    assert counts.tolist() == [0, 0, 0, 1000, 0]
    torch.testing.assert_close(sums[3].double(), x.double().sum(0), rtol=1e-5, atol=1e-4)
    assert not sums[[0, 1, 2, 4]].any()


def test_repeats_are_identical(route):
    x, codes = torch.randn(500, 8, device=route), torch.randint(0, 3, (500,), device=route)
    first = code_sums(x, codes, 3).sums
    assert all(torch.equal(code_sums(x, codes, 3).sums, first) for _ in range(3))


def test_gradients_match_reference(route):
    x = torch.randn(40, 5, device=route, requires_grad=True)
    codes, weight = torch.randint(-1, 6, (40,), device=route), torch.randn(6, 5, device=route)
    (actual,) = torch.autograd.grad((code_sums(x, codes, 6).sums * weight).sum(), x)
    (expected,) = torch.autograd.grad((code_sums_reference(x, codes, 6)[1] * weight).sum(), x)
    assert_close(actual, expected)


def test_gradcheck():
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    codes = torch.tensor([0, 1, 1, -1, 2, 0, 2])
    assert torch.autograd.gradcheck(lambda x: code_sums(x, codes, 4).sums, x)


def test_opcheck():
    args = (torch.randn(9, 4, requires_grad=True), torch.randint(0, 5, (9,)), 5)
    torch.library.opcheck(torch.ops.dqcore.code_sums.default, args)


@pytest.mark.parametrize(
    ("x", "codes", "size", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), 2, "x: expected 2"),
        (torch.zeros(3, 2), torch.zeros(3), 2, "codes: expected int64"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), 2, "codes: expected one for each of 3"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), 0, "num_codes: expected at least 1"),
        (torch.zeros(3, 2), torch.full((3,), 2), 2, "codes: expected values below num_codes=2"),
        (torch.zeros(1, 2).expand(2**31, 2), torch.zeros(1).long().expand(2**31), 2, "x: expected fewer than"),
    ],
)
def test_invalid_input(x, codes, size, message):
    with pytest.raises((TypeError, ValueError), match=message):
        code_sums(x, codes, size)


def test_compiles():
    x, codes = torch.randn(17, 8), torch.randint(0, 6, (17,))
    compiled = torch.compile(lambda x, c: code_sums(x, c, 6).sums, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x, codes), code_sums(x, codes, 6).sums)
