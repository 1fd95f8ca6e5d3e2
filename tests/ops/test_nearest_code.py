import subprocess
import sys

import pytest
import torch

import dqcore
from dqcore.ops import nearest_code
from dqcore.ops.reference.nearest_code import nearest_code_reference
from dqcore.testing import adversarial_codebooks, assert_nearest

SHAPES = [(0, 5, 4), (1, 1, 1), (127, 31, 3), (129, 65, 16), (67, 130, 257)]
CASES = list(adversarial_codebooks(1, 1, 1))
BLOCK_CASES = ["vqgan_init", "near_duplicates", "duplicates", "common_mean"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_matches_reference(route, shape, dtype):
    num, size, dim = shape
    x = torch.randn(dim, num, device=route, dtype=dtype).T  # not contiguous
    codebook = torch.randn(size, dim, device=route, dtype=dtype)
    assert torch.equal(nearest_code(x, codebook), nearest_code_reference(x, codebook, "exact"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(40, 37, 3), (33, 64, 257)], ids=str)
def test_adversarial(route, case, shape):
    x, codebook = (t.to(route) for t in adversarial_codebooks(*shape)[case])
    codes = nearest_code(x, codebook)
    assert_nearest(codes, x, codebook)
    assert torch.equal(codes, nearest_code_reference(x, codebook, "exact"))
    if case == "self":
        assert torch.equal(codes, torch.arange(len(x), device=route) % len(codebook))


@pytest.mark.parametrize("size", [3, 300])
def test_channels_of_codes_may_lie_far_apart(route, size):
    """The third begins 2^31 numbers behind the first; none of the memory between is touched."""
    memory = torch.empty(2**31 + size, dtype=torch.float16, device=route)
    x, codebook = torch.randn(20, 3, device=route), torch.randn(size, 3, device=route, dtype=torch.float16)
    apart = memory.as_strided((size, 3), (1, 2**30)).copy_(codebook)
    assert torch.equal(nearest_code(x, apart), nearest_code(x, codebook))


def test_feature_map_equals_rows(route):
    maps = torch.randn(2, 24, 5, 7, device=route).to(memory_format=torch.channels_last)
    codebook = torch.randn(33, 24, device=route)
    rows = nearest_code(maps.permute(0, 2, 3, 1).reshape(-1, 24), codebook)
    assert torch.equal(nearest_code(maps, codebook), rows.view(2, 5, 7))


@pytest.mark.parametrize("case", [*BLOCK_CASES, "extreme_ranges", "mixed_scales", "signed_zeros", "non_finite"])
def test_blocks_of_codes_change_nothing(monkeypatch, case):
    from dqcore.ops.cpu import code_search, product_search
    from dqcore.ops.cpu import nearest_code as cpu

    x, codebook = adversarial_codebooks(300, 500, 8)[case]
    whole = nearest_code(x, codebook)
    monkeypatch.setattr(code_search, "split_codes", lambda codebook: None)
    monkeypatch.setattr(cpu, "VECTORS", 512)
    for name, size in {"CODES": 256, "SCORES": 4096, "PAIRS": 64}.items():
        monkeypatch.setattr(product_search, name, size)
    assert torch.equal(nearest_code(x, codebook), whole)


def test_a_block_of_codes_that_are_not_finite(monkeypatch):
    from dqcore.ops.cpu import product_search

    monkeypatch.setattr(product_search, "CODES", 256)
    x, codebook = torch.randn(30, 8), torch.randn(130, 8)
    codebook[:40, 3], codebook[-10:] = torch.nan, torch.inf
    assert torch.equal(nearest_code(x, codebook), nearest_code_reference(x, codebook, "exact"))


def test_low_matmul_precision_changes_nothing():
    x, codebook = adversarial_codebooks(300, 256, 64)["gaussian"]
    expected = nearest_code(x, codebook)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(nearest_code(x, codebook), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_not_finite(route, dtype, precision):
    nan, inf = torch.nan, torch.inf
    x = torch.tensor([[nan, 0], [inf, 0], [1, 1], [-inf, 6], [5, inf], [inf, nan], [9, 9]], device=route).to(dtype)
    codebook = torch.tensor([[nan, 0], [5, 5], [1, 1.5], [inf, 6], [9, -inf]], device=route).to(dtype)
    assert nearest_code(x, codebook, precision=precision).tolist() == [-1, -1, 2, -1, -1, -1, 1]
    assert nearest_code(x, codebook[[0, 3, 4]], precision=precision).tolist() == [-1] * 7


def test_fast_is_close(route):
    x, codebook = torch.randn(200, 16, device=route), torch.randn(64, 16, device=route)
    same = nearest_code(x, codebook, precision="fast") == nearest_code(x, codebook)
    assert same.float().mean() >= 0.99


def test_opcheck():
    args = (torch.randn(9, 4), torch.randn(5, 4), "exact")
    torch.library.opcheck(torch.ops.dqcore.nearest_code.default, args)


@pytest.mark.parametrize(
    ("x", "codebook", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 3), "x: expected 2 or 4 dimensions"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, 2), "x: expected float16"),
        (torch.zeros(3, 2), torch.zeros(0, 2), "codebook: expected at least one code"),
        (torch.zeros(3, 2), torch.zeros(2, 3), "codebook: expected 2 channels"),
        (torch.zeros(3, 2), torch.zeros(2, 2, device="meta"), "expected one device"),
    ],
)
def test_invalid_input(x, codebook, message):
    with pytest.raises((TypeError, ValueError), match=message):
        nearest_code(x, codebook)


def test_compiles():
    x, codebook = torch.randn(17, 8), torch.randn(6, 8)
    compiled = torch.compile(nearest_code, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x, codebook), nearest_code(x, codebook))


def test_backend_rejects_unknown_names():
    with pytest.raises(ValueError, match="backend: expected"):
        dqcore.backend("cuda")


MEASURE = """
import resource, sys, torch
from dqcore.ops import nearest_code
num, size, dim = map(int, sys.argv[1:4])
nearest_code(torch.randn(9, dim), torch.randn(9, dim))
x, codebook = torch.randn(num, dim, dtype=getattr(torch, sys.argv[4])), torch.randn(size, dim)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest_code(x, codebook)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 - num * 8 / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [(600_000, 64, 8, "float32"), (2000, 65536, 64, "float32"), (9000, 9000, 512, "bfloat16")]
)
def test_memory_beside_the_result_is_bounded(case):
    """Megabytes of a fresh process's peak; the scores alone would be 146, 500 and 309."""
    command = [sys.executable, "-c", MEASURE, *map(str, case)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_reference_in_a_graph(dtype):
    """As a program of ``torch.export`` holds it: near ties, codes that are there twice, values that are not finite."""
    codebook = torch.randn(50, 8).repeat(3, 1)[torch.randperm(150)].to(dtype)
    x = torch.cat([codebook[:40] + 1e-3, torch.randn(200, 8).to(dtype) * 30, torch.zeros(2, 8).to(dtype)])
    codebook[3, 0], codebook[4], x[-1, 0], x[-2] = torch.inf, torch.nan, torch.nan, -torch.inf

    class Reference(torch.nn.Module):
        def forward(self, x, codebook):
            return nearest_code_reference(x, codebook, "exact")

    program = torch.export.export(Reference(), (x, codebook)).module()
    assert torch.equal(program(x, codebook), nearest_code_reference(x, codebook, "exact"))
