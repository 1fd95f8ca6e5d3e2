"""What the op's tests do not see of the kernels: the scan alone, margins that prove nothing, other tiles, odd sizes."""

import pytest
import torch

import dqcore
from dqcore import backends, ops
from dqcore.ops.reference.nearest_code import nearest_code_reference
from dqcore.testing import adversarial_codebooks

pytest.importorskip("triton")
if not (backends.interpreting() or torch.cuda.is_available()):
    pytest.skip("needs Triton's interpreter or a GPU", allow_module_level=True)

from dqcore.kernels import codes, dynamic_lookup, nearest_code, rounding, settle, tuned
from dqcore.kernels.vectors import Vectors

DEVICE = "cpu" if backends.interpreting() else "cuda"


def problem(num=70, size=150, dim=20, dtype=torch.float32):
    return torch.randn(num, dim, device=DEVICE).to(dtype), torch.randn(size, dim, device=DEVICE).to(dtype)


def scan_alone(x, codebook):
    """What the scan settles by itself, -1 elsewhere."""
    codes = torch.full((len(x),), -1, device=DEVICE)
    for part in nearest_code.parts(Vectors.of(x), codebook):
        part.scan()
        part.certify(codes, exact=True)
    return codes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("error", [1e-4, 1e-3, 1e-2, float("inf")])
def test_what_the_scan_leaves_open_is_settled(monkeypatch, dtype, error):
    """From a few candidates to lists that overflow, to margins that prove nothing at all."""
    x, codebook = problem(num=40, dtype=dtype)
    monkeypatch.setattr(rounding, "ACCUMULATION", error)
    assert torch.equal(
        nearest_code.nearest_code_fwd(x, codebook, "exact"), nearest_code_reference(x, codebook, "exact")
    )


def test_lists_overflow_where_more_codes_are_near(monkeypatch):
    """What the case above must meet: lists that hold all candidates, and lists that do not."""
    x, codebook = problem(num=40)
    monkeypatch.setattr(rounding, "ACCUMULATION", 1e-3)
    codes, seen = torch.full((len(x),), -1, device=DEVICE), []
    for part in nearest_code.parts(Vectors.of(x), codebook):
        part.scan()
        part.certify(codes, exact=True)
        part.rescan()
        part.settle(codes)
        seen.append(part.work.found)
    assert torch.equal(codes, nearest_code_reference(x, codebook, "exact"))
    found = torch.cat(seen)
    assert (found > settle.LIST).any()
    assert (found <= settle.LIST).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [8, 20, 70])
def test_scan_settles_most_and_only_rightly(dtype, dim):
    x, codebook = problem(num=300, dim=dim, dtype=dtype)
    codes = scan_alone(x, codebook)
    settled = codes >= 0
    assert settled.float().mean() > 0.9
    assert torch.equal(codes[settled], nearest_code_reference(x, codebook, "exact")[settled])


@pytest.mark.parametrize("case", ["duplicates", "all_equal", "huge", "subnormal", "common_mean", "near_duplicates"])
@pytest.mark.parametrize("dim", [8, 30])
def test_scan_never_guesses(case, dim):
    x, codebook = (t.to(DEVICE) for t in adversarial_codebooks(500, 60, dim)[case])
    codes = scan_alone(x, codebook)
    settled = codes >= 0
    assert torch.equal(codes[settled], nearest_code_reference(x, codebook, "exact")[settled])
    if case in ("all_equal", "subnormal"):
        assert not settled.any()


def test_order_of_summation_decides():
    """Permutations of a vector are equally far from zero but for rounding: only the canonical sum finds the winner."""
    x = torch.zeros(1, 70, device=DEVICE)
    for _ in range(5):
        vector = torch.randn(70, device=DEVICE)
        codebook = torch.stack([vector[torch.randperm(70, device=DEVICE)] for _ in range(60)])
        codes = nearest_code.nearest_code_fwd(x, codebook, "exact")
        assert torch.equal(codes, nearest_code_reference(x, codebook, "exact"))


@pytest.mark.parametrize("tile", [(16, 16, 16), (32, 128, 16), (128, 32, 64)], ids=str)
@pytest.mark.parametrize("case", ["gaussian", "near_duplicates", "vqgan_init"])
def test_tiles_and_stretches_change_nothing(monkeypatch, tile, case):
    x, codebook = (t.to(DEVICE) for t in adversarial_codebooks(50, 700, 33)[case])
    expected = nearest_code_reference(x, codebook, "exact")
    sizes = dict(zip(("BLOCK_N", "BLOCK_K", "BLOCK_D"), tile, strict=True))
    monkeypatch.setattr(nearest_code, "tree_tile", lambda dim: {"BLOCK_K": tile[0], "LEAF": 16, "WIDTH": 64})
    monkeypatch.setattr(nearest_code, "STRETCH", 2 * tile[1])
    with tuned.force("nearest_code", {**sizes, "num_warps": 4, "num_stages": 1}):
        assert torch.equal(nearest_code.nearest_code_fwd(x, codebook, "exact"), expected)


@pytest.mark.parametrize("case", ["gaussian", "common_mean"])
def test_parts_of_a_batch_change_nothing(monkeypatch, case):
    x, codebook = (t.to(DEVICE) for t in adversarial_codebooks(1500, 40, 6)[case])
    monkeypatch.setattr(nearest_code, "WORKSPACE", 1)
    assert torch.equal(
        nearest_code.nearest_code_fwd(x, codebook, "exact"), nearest_code_reference(x, codebook, "exact")
    )


@pytest.mark.parametrize("num", [0, 1, 127, 129])
@pytest.mark.parametrize("size", [1, 65])
def test_sizes(num, size):
    x, codebook = problem(num, size, 5)
    codes = nearest_code.nearest_code_fwd(x, codebook, "exact")
    assert torch.equal(codes, nearest_code_reference(x, codebook, "exact"))


def test_mixed_dtypes():
    x, codebook = problem()
    for a, b in ((torch.float16, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)):
        codes = nearest_code.nearest_code_fwd(x.to(a), codebook.to(b), "exact")
        assert torch.equal(codes, nearest_code_reference(x.to(a), codebook.to(b), "exact"))


@pytest.mark.parametrize("whole", [2**power for power in range(2, 15)])
def test_programs_share_all_codes(whole):
    """Whatever the number of channels: no code of a padded codebook is left out."""
    assert codes.PADDING % codes.codes_at_once(whole) == 0


def test_a_codebook_of_more_than_32_bits_takes_the_reference(monkeypatch):
    assert codes.fits(2**23 - 257, 256) and not codes.fits(2**23 - 256, 256)
    assert codes.fits(2**25 - 257, 16) and not codes.fits(2**25 - 256, 16)
    x, codebook = problem()
    grain = torch.zeros(1, 1, 1, dtype=torch.int64, device=DEVICE)
    launched = []
    for module, name in ((nearest_code, "nearest_code_fwd"), (dynamic_lookup, "dynamic_lookup_fwd")):
        monkeypatch.setattr(module, name, lambda *args: launched.append(args))
    monkeypatch.setattr(codes, "fits", lambda size, dim: False)
    with dqcore.backend("interpreter" if backends.interpreting() else "auto"):
        expected = ops.nearest_code(x, codebook)
        found = ops.dynamic_lookup([x[:1, :, None, None]], grain, codebook)
    assert not launched and torch.equal(expected, nearest_code_reference(x, codebook, "exact"))
    assert found.codes.flatten().equal(expected[:1])
