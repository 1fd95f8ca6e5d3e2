"""``nearest_code`` and ``dynamic_lookup`` on every finite value and on NaN and infinities, against exact arithmetic."""

import itertools
import math
import time
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dqcore.ops import dynamic_lookup, nearest_code
from dqcore.ops.reference.nearest_code import nearest_code_reference
from dqcore.testing import adversarial_codebooks

DTYPES = {16: torch.float16, 32: torch.float32, 64: torch.float64}
EXTREMES = {
    torch.float16: (6e4, 6e-8),
    torch.bfloat16: (3e38, 1e-40),
    torch.float32: (3e38, 1e-45),
    torch.float64: (1.7e308, 5e-324),
}


def assert_exact(codes, x, codebook):
    """Compare in rational numbers: the chosen code may be farther than the nearest by float64 rounding alone."""
    finite = [k for k, code in enumerate(codebook.tolist()) if all(map(math.isfinite, code))]
    for code, vector in zip(codes.tolist(), x.tolist(), strict=True):
        if not finite or not all(map(math.isfinite, vector)):
            assert code == -1
            continue
        assert code in finite

        def distance(k, vector=vector):
            pairs = zip(vector, codebook[k].tolist(), strict=True)
            return sum((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs)

        assert distance(code) <= min(map(distance, finite)) * (1 + Fraction(16, 2**53))


@st.composite
def problems(draw, bits):
    """A few vectors and codes of any values at all; each row may be multiplied by a power of two of its own."""
    elements = st.floats(width=bits, allow_nan=True, allow_infinity=True)
    near = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 2.0])
    kind = f"float{bits}"
    size, dim = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    both = arrays(kind, (4 + size, dim), elements=draw(st.sampled_from([elements, near])))
    rows = torch.from_numpy(draw(both)).to(DTYPES[bits])
    return rows[:4], rows[4:]


def check(problem):
    x, codebook = problem
    codes = nearest_code(x, codebook)
    assert_exact(codes, x, codebook)
    assert torch.equal(codes, nearest_code_reference(x, codebook, "exact"))
    fast = nearest_code(x, codebook, precision="fast")
    assert torch.equal(fast < 0, codes < 0)
    assert (fast < len(codebook)).all()


any_time = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True)
few = settings(any_time, max_examples=5)


@pytest.mark.parametrize("bits", DTYPES)
def test_any_values(bits):
    any_time(given(problems(bits))(check))()


@pytest.mark.parametrize("bits", [16, 32])
def test_any_values_on_every_route(route, bits):
    few(given(problems(bits))(lambda problem: check([t.to(route) for t in problem])))()


@pytest.mark.parametrize("dtype", EXTREMES, ids=str)
def test_scales_far_apart(route, dtype):
    """Vectors and codes of every size a dtype has, in one batch."""
    largest, smallest = EXTREMES[dtype]
    sizes = [largest, largest**0.5, 1.0, smallest**0.5, smallest]
    signs = torch.tensor([[1, 1, -1], [0.5, -0.0, 1], [-1, 0.75, 0]], dtype=torch.float64)
    x = torch.cat([signs * size for size in sizes]).to(dtype)
    for chosen in [(0,), (1,), (2,), (3,), (4,), (0, 2), (1, 4), (0, 1, 2, 3, 4)]:
        codebook = torch.cat([(signs * -0.8 + 0.1) * sizes[i] for i in chosen]).to(dtype)
        codes = nearest_code(x.to(route), codebook.to(route)).cpu()
        assert_exact(codes, x, codebook)
        assert torch.equal(codes, nearest_code_reference(x, codebook, "exact"))


def test_the_nearest_of_far_and_near_float64_codes():
    """Squares overflow, underflow or vanish beside others; each vector is one of the codes, or beside one."""
    codes = torch.tensor([1.7e308, 1e200, 1e-200, 1e-300, 5e-324, 0.0, -1e-200, -1.7e308], dtype=torch.float64)
    codebook = codes[:, None].repeat(1, 3)
    assert nearest_code(codebook, codebook).tolist() == list(range(8))
    beside = codebook * 1.01
    beside[0], beside[-1] = 1.6e308, -1.6e308
    assert nearest_code(beside, codebook).tolist() == list(range(8))
    far = torch.full((1, 3), 1.7e308, dtype=torch.float64)
    assert nearest_code(far, -far * torch.tensor([[1.0], [0.9], [0.95]], dtype=torch.float64)).item() == 1


@pytest.mark.parametrize("scale", [1e18, 1e25, 1e30])
def test_vectors_much_larger_than_codes(route, scale):
    x, codebook = torch.randn(9, 6, device=route) * scale, torch.randn(40, 6, device=route)
    assert torch.equal(nearest_code(x, codebook), nearest_code_reference(x, codebook, "exact"))


@pytest.mark.parametrize("case", ["huge", "subnormal", "extreme_ranges", "mixed_scales", "signed_zeros", "non_finite"])
@pytest.mark.parametrize("masked", [False, True])
def test_dynamic_lookup_agrees(route, case, masked):
    x, codebook = (t.to(route) for t in adversarial_codebooks(80, 48, 6)[case])
    maps = [x[64:].view(1, 4, 4, 6).permute(0, 3, 1, 2), x[:64].view(1, 8, 8, 6).permute(0, 3, 1, 2)]
    maps = [values.clone().requires_grad_() for values in maps]
    codebook.requires_grad_()
    grain = torch.randint(0, 2, (1, 4, 4), device=route)
    mask = torch.rand(1, 4, 4, device=route) > 0.3 if masked else None
    result = dynamic_lookup(maps, grain, codebook, mask=mask, with_sums=True)
    (result.quantized.sum() + result.error.sum()).backward()
    counts = torch.zeros(48, device=route)
    for g, values in enumerate(maps):
        codes = nearest_code(values, codebook)
        here = (grain == g if mask is None else (grain == g) & mask).repeat_interleave(1 << g, 1)
        here = here.repeat_interleave(1 << g, 2) & (codes >= 0)
        counts += codes[here].bincount(minlength=48)
        repeat = 2 - g
        for y, column in itertools.product(range(repeat), repeat=2):
            assert torch.equal(result.codes[:, y::repeat, column::repeat][here], codes[here])
            found = result.quantized[:, :, y::repeat, column::repeat].permute(0, 2, 3, 1)[here]
            assert torch.equal(found, codebook[codes[here]])
        assert not values.grad.permute(0, 2, 3, 1)[~here].any()  # nor NaN
    none = result.codes < 0
    assert not result.error[none].any()
    assert not result.quantized.permute(0, 2, 3, 1)[none].any()
    assert torch.equal(result.statistics.counts, counts)
    if case == "non_finite":
        assert none.any()
        for tensor in (*(values.grad for values in maps), codebook.grad, *result.statistics, *result[1:3]):
            assert tensor.isfinite().all()


def test_nothing_is_finite(route):
    maps = [torch.full((1, 3, 2 << g, 2 << g), torch.nan, device=route, requires_grad=True) for g in range(2)]
    codebook = torch.full((4, 3), torch.inf, device=route, requires_grad=True)
    grain = torch.tensor([[[0, 1], [1, 0]]], device=route)
    result = dynamic_lookup(maps, grain, codebook, with_sums=True)
    (result.quantized.sum() + result.error.sum()).backward()
    assert (result.codes == -1).all()
    for tensor in (*result[1:3], *result.statistics, codebook.grad, *(values.grad for values in maps)):
        assert not tensor.any()


def test_vectors_that_are_not_finite_cost_nothing():
    """Seventy times the time was seen; the bound is generous, since other processes share the machine."""
    x, codebook = torch.randn(2, 64, 32, 32), torch.randn(512, 64)
    strange = x.clone()
    strange.permute(0, 2, 3, 1)[torch.rand(2, 32, 32) < 0.2] = torch.nan
    strange[:, 0, 0] = torch.inf
    seconds = {id(x): [], id(strange): []}
    for _, values in itertools.product(range(40), (x, strange)):
        start = time.thread_time()
        nearest_code(values, codebook)
        seconds[id(values)].append(time.thread_time() - start)
    assert min(seconds[id(strange)]) < 2 * min(seconds[id(x)])
