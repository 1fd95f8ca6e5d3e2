"""Products of float32 by parts of bfloat16: what they lose, and that no part is left out."""

from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

from dqcore import backends
from dqcore.kernels.products import product, split

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not backends.interpreting(), reason="without a GPU and Triton's interpreter no kernel runs"
)


class Kind(NamedTuple):
    """The field of a kernel's kind that a product asks for."""

    PRECISION: str


@triton.jit
def _product_kernel(a, b, out, KIND: tl.constexpr):
    i, j, c = tl.arange(0, 32), tl.arange(0, 16), tl.arange(0, 64)
    left = tl.load(a + i[:, None] * 64 + c[None, :])
    right = tl.load(b + c[:, None] * 16 + j[None, :])
    total = product(left, right, tl.zeros([32, 16], tl.float32), KIND)
    tl.store(out + i[:, None] * 16 + j[None, :], total)


@triton.jit
def _split_kernel(x, out):
    i = tl.arange(0, 64)
    high, middle, low = split(tl.load(x + i))
    tl.store(out + i, high.to(tl.float32))
    tl.store(out + 64 + i, middle.to(tl.float32))
    tl.store(out + 128 + i, low.to(tl.float32))


def test_three_parts_are_the_number():
    x, parts = torch.randn(64, device=DEVICE) * 2.0 ** torch.arange(-32, 32, device=DEVICE), torch.empty(3, 64)
    parts = parts.to(DEVICE)
    _split_kernel[(1,)](x, parts)
    assert torch.equal(parts, parts.bfloat16().float())
    assert torch.equal(parts.double().sum(0), x.double())
    assert ((parts[1] / parts[0]).abs() <= 2.0**-7).all() and ((parts[2] / parts[0]).abs() <= 2.0**-15).all()


@pytest.mark.parametrize("precision", ["bf16x6", "ieee"])
def test_a_product_loses_what_float32_does(precision):
    """Each of the six pairs counts for 2^-18 or more; with one left out the bound would not hold."""
    a, b = torch.rand(32, 64, device=DEVICE) + 1, torch.rand(64, 16, device=DEVICE) + 1
    out = torch.empty(32, 16, device=DEVICE)
    _product_kernel[(1,)](a, b, out, Kind(precision))
    exact = a.double() @ b.double()
    assert ((out - exact).abs() / exact).max() < 2.0**-21


def test_the_range_of_parts():
    """What ``varlen_attention`` says of very large and very small numbers."""
    ends = torch.linspace(1, 1.5, 16, device=DEVICE)
    x, parts = torch.cat([2.2e38 * ends, -2.2e38 * ends, 1e-30 * ends, -1e-30 * ends]), torch.empty(3, 64)
    parts = parts.to(DEVICE)
    _split_kernel[(1,)](x, parts)
    assert torch.equal(parts.double().sum(0), x.double())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_an_infinity_acts_as_a_nan(value):
    a, b = torch.rand(32, 64, device=DEVICE), torch.rand(64, 16, device=DEVICE)
    out, a[5, 7] = torch.empty(32, 16, device=DEVICE), value
    _product_kernel[(1,)](a, b, out, Kind("bf16x6"))
    assert out[5].isnan().all() and out.isnan().sum() == 16
