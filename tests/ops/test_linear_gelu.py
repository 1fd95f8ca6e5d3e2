"""A linear layer with exact GELU: values on every route, the kernel's odd sizes, and when PyTorch's own run."""

import pytest
import torch
from torch.nn import functional as F

import dqcore
from dqcore.errors import InputError
from dqcore.ops import linear_gelu
from dqcore.testing import assert_close

HALF = (torch.float16, torch.bfloat16)


def problem(route, rows, channels, columns, dtype):
    """Values of the size of a normalized row, weights that keep it."""
    x, weight, bias = torch.randn(rows, channels), torch.randn(columns, channels), torch.randn(columns)
    return [value.to(route, dtype) for value in (x, weight / channels**0.5, bias)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 40, 70), (65, 64, 64), (70, 130, 33), (128, 32, 200)])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_values(route, shape, dtype):
    x, weight, bias = problem(route, *shape, dtype)
    expected = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    out = linear_gelu(x, weight, bias)
    assert out.dtype == dtype
    assert_close(out, expected)
    assert_close(linear_gelu(x.view(1, *x.shape), weight.T.contiguous().T, bias)[0], expected)


def test_the_tails_are_those_of_the_exact_gelu(route):
    x = torch.linspace(-9, 9, 64).bfloat16().to(route)[:, None]
    one = torch.ones(1, 1, dtype=torch.bfloat16, device=route)
    out = linear_gelu(x, one, one[0] * 0)
    expected = F.gelu(x.double())
    own = dqcore.backends.route(x.device) == "cpu"  # PyTorch's layer, whose tails depend on the CPU
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=2e-6 if own else 1e-7)
    assert (F.gelu(x.double(), approximate="tanh") - expected).abs().max() > 1e-4  # the other one would be seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_its_gradient(route, dtype):
    x, weight, bias = (value.requires_grad_() for value in problem(route, 5, 8, 6, dtype))
    out = linear_gelu(x, weight, bias)
    expected = F.gelu(F.linear(x, weight, bias))
    assert_close(out, expected.double())
    mine, theirs = (torch.autograd.grad(y.sum(), (x, weight, bias)) for y in (out, expected))
    for grad, other in zip(mine, theirs, strict=True):
        assert_close(grad / 4, other.double() / 4)


def test_which_rows_take_the_kernel(monkeypatch):
    seen = []

    def own(x, *rest):
        seen.append(len(x))
        return torch.ops.aten.linear(x, *rest)

    monkeypatch.setattr(F, "linear", own)
    with dqcore.backend("interpreter"):
        for rows, dtype in ((257, torch.bfloat16), (4, torch.float32)):
            linear_gelu(*problem("cpu", rows, 8, 8, dtype))
        with torch.autocast("cpu", torch.bfloat16):
            linear_gelu(*problem("cpu", 3, 8, 8, torch.bfloat16))
    linear_gelu(*problem("cpu", 5, 8, 8, torch.bfloat16))
    assert seen == [257, 4, 3, 5]


def test_nothing_and_an_op(route):
    x, weight, bias = problem(route, 0, 8, 6, torch.bfloat16)
    assert linear_gelu(x, weight, bias).shape == (0, 6)
    arguments = problem(route, 3, 8, 6, torch.bfloat16)
    torch.library.opcheck(torch.ops.dqcore.linear_gelu, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4,), (3, 4), (3,)), r"expected shapes \(..., K\), \(N, K\) and \(N,\), got \(4,\), \(3, 4\), \(3,\)"),
        (((2, 5), (3, 4), (3,)), "expected shapes"),
        (((2, 4), (3, 4), (4,)), "expected shapes"),
        (((2, 4), (4,), (4,)), "weight: expected 2 dimensions"),
    ],
)
def test_refuses(shapes, message):
    with pytest.raises(InputError, match=message):
        linear_gelu(*map(torch.ones, shapes))
    with pytest.raises(TypeError, match="weight: expected float32, got float64"):
        linear_gelu(torch.ones(2, 4), torch.ones(3, 4).double(), torch.ones(3))
