"""A bias and exact GELU: values and gradients on every route, and within ``linear_gelu``."""

import pytest
import torch
from torch.nn import functional as F

import dqcore
from dqcore.errors import InputError
from dqcore.ops import bias_gelu, linear_gelu
from dqcore.testing import assert_close

HALF = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (70, 96), (3, 300), (2, 4, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF, torch.float64])
def test_values_and_gradients(route, shape, dtype):
    x = (2 * torch.randn(shape)).to(route, dtype).requires_grad_()
    bias = torch.randn(shape[-1]).to(route, torch.promote_types(dtype, torch.float32)).requires_grad_()
    weight = torch.rand(shape, device=route)
    out = bias_gelu(x, bias)
    exact = [value.detach().double().requires_grad_() for value in (x, bias)]
    expected = F.gelu(exact[0] + exact[1])
    assert out.dtype == dtype
    assert_close(out, expected)
    grads = torch.autograd.grad((out * weight.to(dtype)).sum(), (x, bias))
    wanted = torch.autograd.grad((expected * weight.to(dtype).double()).sum(), exact)
    assert grads[0].dtype == dtype and grads[1].dtype == bias.dtype
    assert_close(grads[0], wanted[0])
    own = backends_own(route) and dtype in HALF  # PyTorch's sum of half-precision gradients
    assert_close(grads[1] / 8, wanted[1] / 8, dtype if own else None)


def backends_own(route):
    """Whether PyTorch's own layers run."""
    return dqcore.backends.route(torch.device(route)) == "cpu"


def test_far_from_zero_and_not_finite(route):
    x = torch.tensor([[-torch.inf, -200.0, -9.0, 0.0, 9.0, 200.0, torch.inf, torch.nan]], device=route).requires_grad_()
    out = bias_gelu(x, torch.zeros(8, device=route))
    expected = torch.tensor([0.0, 0.0, 0.0, 9.0, 200.0, torch.inf], device=route).double()
    known = 5 if backends_own(route) else 6  # of infinity PyTorch makes a NaN on some CPUs
    assert_close(out[0, 1:7][:known], expected[:known])
    (grad,) = torch.autograd.grad(out[:, 1:6].sum(), x)
    assert_close(grad[0, 1:6], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0], device=route).double())


def test_a_linear_layer_under_autocast_keeps_its_gradients(route):
    x = torch.randn(6, 16, device=route).bfloat16().requires_grad_()
    weight, bias = torch.randn(24, 16, device=route).requires_grad_(), torch.randn(24, device=route).requires_grad_()
    with torch.autocast(route, torch.bfloat16):
        out = linear_gelu(x, weight, bias)
        expected = F.gelu(F.linear(x, weight, bias))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=2**-6, atol=2**-6)
    mine, theirs = (torch.autograd.grad(y.float().square().sum(), (x, weight, bias)) for y in (out, expected))
    for grad, other in zip(mine, theirs, strict=True):
        assert grad.dtype == other.dtype
        torch.testing.assert_close(grad, other, rtol=2**-4, atol=2**-4 * float(other.abs().max()))


def test_nothing_and_an_op(route):
    bias = torch.zeros(4, device=route, requires_grad=True)
    empty = torch.zeros(0, 4, device=route, requires_grad=True)
    assert torch.autograd.grad(bias_gelu(empty, bias).sum(), bias)[0].tolist() == [0.0] * 4
    arguments = (torch.randn(3, 4, device=route, requires_grad=True), bias)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.dqcore.bias_gelu, arguments, test_utils=tests)


@pytest.mark.parametrize(("shape", "size"), [((3,), 3), ((2, 3), 2), ((2, 0), 0)])
def test_refuses(shape, size):
    with pytest.raises(InputError, match="bias: expected one number a channel of x"):
        bias_gelu(torch.ones(shape), torch.ones(size))
