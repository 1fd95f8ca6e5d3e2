import re
from pathlib import Path

import pytest
import torch
from torch.testing._internal.optests import aot_autograd_check

import dqcore
from dqcore.ops import dynamic_lookup
from dqcore.ops.dynamic_lookup import MAX_GRANULARITIES
from dqcore.ops.layout import merge_maps
from dqcore.ops.reference.dynamic_lookup import dynamic_lookup_reference
from dqcore.testing import TOLERANCE, adversarial_codebooks, assert_close, assert_nearest


def inputs(levels, device="cpu", dtype=torch.float32, batch=2, dim=8, height=3, width=5, size=37, grad=False):
    maps = [torch.randn(batch, dim, height << g, width << g, device=device, dtype=dtype) for g in range(levels)]
    grain = torch.randint(0, levels, (batch, height, width), device=device)
    codebook = torch.randn(size, dim, device=device, dtype=dtype)
    if grad:
        for tensor in (*maps, codebook):
            tensor.requires_grad_()
    return maps, grain, codebook


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_matches_reference(route, levels, dtype, masked):
    maps, grain, codebook = inputs(levels, route, dtype)
    maps[-1] = maps[-1].to(memory_format=torch.channels_last)
    mask = torch.rand(grain.shape, device=route) > 0.3 if masked else None
    result = dynamic_lookup(maps, grain, codebook, mask=mask, with_sums=True)
    where = grain if mask is None else torch.where(mask, grain, -1)
    wide = [values.double() for values in maps]
    codes, quantized, error, counts, sums = dynamic_lookup_reference(wide, where, codebook.double(), True)
    assert torch.equal(result.codes, codes)
    assert torch.equal(result.quantized, quantized.to(dtype))
    assert torch.equal(result.statistics.counts.double(), counts)
    rtol, atol = TOLERANCE[torch.float32]
    torch.testing.assert_close(result.error.double(), error, rtol=rtol, atol=atol)
    torch.testing.assert_close(result.statistics.sums.double(), sums, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("layout", ["planes", "vectors", "last map alone", "strided"])
def test_any_memory_format(route, layout):
    """The result is the same, and lies in memory as the finest map does; so do the gradients as their maps."""
    maps, grain, codebook = inputs(3, route)
    expected = dynamic_lookup(maps, grain, codebook, with_sums=True)
    last = torch.channels_last
    other = {
        "planes": maps,
        "vectors": [values.contiguous(memory_format=last) for values in maps],
        "last map alone": [*maps[:-1], maps[-1].contiguous(memory_format=last)],
        "strided": [torch.stack([values, values], -1)[..., 0] for values in maps],
    }[layout]
    leaves = [values.detach().requires_grad_() for values in other]
    result = dynamic_lookup(leaves, grain, codebook, with_sums=True)
    for a, b in zip(result[:2], expected[:2], strict=True):
        assert torch.equal(a, b)
    assert_close(result.error, expected.error)
    assert_close(result.statistics.sums, expected.statistics.sums)
    form = last if layout in ("vectors", "last map alone") else torch.contiguous_format
    assert result.quantized.is_contiguous(memory_format=form)
    weight, scale = torch.randn_like(maps[-1]), torch.randn_like(result.error)
    grads = torch.autograd.grad((result.quantized * weight).sum() + (result.error * scale).sum(), leaves)
    plain = [values.detach().requires_grad_() for values in maps]
    again = dynamic_lookup(plain, grain, codebook)
    wanted = torch.autograd.grad((again.quantized * weight).sum() + (again.error * scale).sum(), plain)
    for grad, values, want in zip(grads, other, wanted, strict=True):
        assert layout == "strided" or grad.stride() == values.stride()
        assert_close(grad, want)


@pytest.mark.parametrize("case", ["vqgan_init", "common_mean", "near_duplicates", "duplicates", "huge", "zeros"])
def test_exact_on_adversarial_codes(route, case):
    x, codebook = (t.to(route) for t in adversarial_codebooks(80, 48, 16)[case])
    fine = x[:64].view(1, 8, 8, 16).permute(0, 3, 1, 2)
    coarse = x[64:].view(1, 4, 4, 16).permute(0, 3, 1, 2).contiguous()
    grain = torch.randint(0, 2, (1, 4, 4), device=route)
    codes = dynamic_lookup([coarse, fine], grain, codebook).codes
    merged = merge_maps([coarse, fine], grain).permute(0, 2, 3, 1).reshape(-1, 16)
    assert_nearest(codes.flatten(), merged, codebook)
    assert torch.equal(codes.flatten(), dqcore.ops.nearest_code(merged, codebook))


def test_error_counts_each_code_once(route):
    maps, grain, codebook = inputs(3, route)
    result = dynamic_lookup(maps, grain, codebook, with_sums=True)
    number = (4**grain).sum()
    assert result.statistics.counts.sum() == number
    total = sum(
        ((codebook[result.codes[:, :: 4 >> g, :: 4 >> g]].permute(0, 3, 1, 2) - values).square().sum(1)
         * (grain == g).repeat_interleave(1 << g, 1).repeat_interleave(1 << g, 2)).sum()
        for g, values in enumerate(maps)
    )  # fmt: skip
    torch.testing.assert_close(result.error.sum(), total, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_gradients_match_reference(route, levels, dtype):
    maps, grain, codebook = inputs(levels, route, dtype, grad=True)
    wide = [t.detach().double().requires_grad_() for t in (*maps, codebook)]
    weight, scale = torch.randn_like(maps[-1]), torch.randn(maps[-1][:, 0].shape, device=route)
    result = dynamic_lookup(maps, grain, codebook)
    loss = (result.quantized * weight).sum() + (result.error * scale).sum()
    actual = torch.autograd.grad(loss, [*maps, codebook])
    reference = dynamic_lookup_reference(wide[:-1], grain, wide[-1], False)
    expected = torch.autograd.grad((reference[1] * weight).sum() + (reference[2] * scale).sum(), wide)
    rtol, atol = TOLERANCE[dtype]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=4 * rtol, atol=4 * atol + 1e-5)


def test_five_granularities(route):
    """16 x 16 cells a region; loops that are unrolled for two granularities must not be for these."""
    maps, _, codebook = inputs(5, route, batch=1, dim=4, height=1, width=5, size=9, grad=True)
    grain = torch.arange(5, device=route).view(1, 1, 5)
    result = dynamic_lookup(maps, grain, codebook, with_sums=True)
    weight, scale = torch.randn_like(maps[-1]), torch.randn(1, 16, 80, device=route)
    actual = torch.autograd.grad((result.quantized * weight).sum() + (result.error * scale).sum(), [*maps, codebook])
    wide = [t.detach().double().requires_grad_() for t in (*maps, codebook)]
    codes, quantized, error, counts, _ = dynamic_lookup_reference(wide[:-1], grain, wide[-1], True)
    expected = torch.autograd.grad((quantized * weight).sum() + (error * scale).sum(), wide)
    assert torch.equal(result.codes, codes)
    assert torch.equal(result.statistics.counts.double(), counts)
    assert counts.sum() == 1 + 4 + 16 + 64 + 256
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_gradient_is_zero_where_another_granularity_rules(route):
    maps, _, codebook = inputs(2, route, grad=True)
    with torch.no_grad():
        maps[0][:] = torch.nan
    grain = torch.ones(2, 3, 5, dtype=torch.int64, device=route)
    result = dynamic_lookup(maps, grain, codebook)
    coarse, fine = torch.autograd.grad(result.quantized.sum() + result.error.sum(), maps)
    assert not coarse.any()
    assert fine.isfinite().all()


def test_gradcheck():
    maps, grain, codebook = inputs(2, dtype=torch.float64, batch=1, dim=2, height=2, width=2, size=4, grad=True)
    assert torch.autograd.gradcheck(lambda *m: dynamic_lookup(m[:2], grain, m[2]).error, (*maps, codebook))


def test_batch_mates_change_nothing(route):
    maps, grain, codebook = inputs(2, route, batch=4)
    whole = dynamic_lookup(maps, grain, codebook)
    for i in range(4):
        alone = dynamic_lookup([m[i : i + 1] for m in maps], grain[i : i + 1], codebook)
        assert torch.equal(alone.codes[0], whole.codes[i])
        assert torch.equal(alone.quantized[0], whole.quantized[i])
        assert torch.equal(alone.error[0], whole.error[i])


def test_parts_change_nothing(monkeypatch):
    from dqcore.ops.cpu import dynamic_lookup as cpu

    maps, grain, codebook = inputs(3, batch=3)
    whole = dynamic_lookup(maps, grain, codebook, with_sums=True)
    for vectors in (1, 8 * 5 * 16 * 2, 8 * 5 * 16 * 4):
        monkeypatch.setattr(cpu, "VECTORS", vectors)
        part = dynamic_lookup(maps, grain, codebook, with_sums=True)
        assert torch.equal(part.codes, whole.codes)
        assert torch.equal(part.quantized, whole.quantized)


def test_codebook_may_change_before_backward():
    maps, grain, codebook = inputs(2, grad=True)
    codebook = codebook.detach()
    result = dynamic_lookup(maps, grain, codebook)
    expected = torch.autograd.grad(result.error.sum(), maps, retain_graph=True)
    codebook.add_(1)
    actual = torch.autograd.grad(result.error.sum(), maps)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_empty_batch(route):
    maps, grain, codebook = inputs(2, route, batch=0)
    result = dynamic_lookup(maps, grain, codebook, with_sums=True)
    assert result.quantized.shape == (0, 8, 6, 10)
    assert result.statistics.counts.tolist() == [0] * 37


@pytest.mark.parametrize("with_sums", [False, True])
def test_opcheck(with_sums):
    """opcheck's last test adds all results to the first in place, so the integers must come last there."""
    op, args = torch.ops.dqcore.dynamic_lookup.default, (*inputs(2, grad=True), with_sums)
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))

    def integers_last(*args):
        codes, *rest = op(*args)
        return *rest, codes

    if torch.__version__ < (2, 14):
        pytest.skip("older versions change the inputs in place")
    for dynamic in (False, True):
        aot_autograd_check(integers_last, args, {}, dynamic, check_gradients="auto", copy_inputs=True)


def test_compiles():
    maps, grain, codebook = inputs(2, grad=True)

    def step(maps, grain, codebook):
        result = dynamic_lookup(maps, grain, codebook)
        return result.quantized.sum() + result.error.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(maps, grain, codebook), [*maps, codebook])
    expected = torch.autograd.grad(step(maps, grain, codebook), [*maps, codebook])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def _broken(change):
    maps, grain, codebook = inputs(2)
    return change(maps, grain, codebook)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, g, c: ([], g, c), "maps: expected a non-empty list"),
        (lambda m, g, c: ([m[0]] * 9, g, c), "maps: expected at most 8 feature maps, one a granularity, got 9"),
        (lambda m, g, c: (m[::-1], g, c), r"maps\[0\]: expected shape"),
        (lambda m, g, c: ([m[0], m[1].half()], g, c), r"maps\[1\]: expected torch.float32"),
        (lambda m, g, c: (m, g.int(), c), "grain: expected int64"),
        (lambda m, g, c: (m, g + 1, c), r"grain: expected values in \[0, 2\)"),
        (lambda m, g, c: (m, g - 1, c), r"grain: expected values in \[0, 2\)"),
        (lambda m, g, c: (m, g[:1].to("meta").expand(2**29, -1, -1), c), r"grain: expected fewer than 2\*\*31 cells"),
        (lambda m, g, c: (m, g, c[:0]), "codebook: expected at least one code"),
        (lambda m, g, c: (m, g, c[:, :3]), "codebook: expected 8 channels"),
    ],
)
def test_invalid_input(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        dynamic_lookup(*_broken(change))


def test_kernels_take_as_many_granularities():
    sources = [path.read_text() for path in (Path(__file__).parents[2] / "kernels").glob("*.py")]
    found = [re.search(r"^MAX_GRANULARITIES = (\d+)", source, re.MULTILINE) for source in sources]
    assert [int(match[1]) for match in found if match] == [MAX_GRANULARITIES]


def test_invalid_mask():
    maps, grain, codebook = inputs(2)
    with pytest.raises(ValueError, match="mask: expected shape"):
        dynamic_lookup(maps, grain, codebook, mask=torch.ones(2, 3, 4, dtype=torch.bool))
