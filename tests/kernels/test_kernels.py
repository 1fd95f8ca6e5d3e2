"""What the ops' tests do not see of the kernels: proofs forced to fail, other tiles, odd sizes, repeats."""

import importlib.util
from pathlib import Path

import pytest
import torch

from dqcore import backends
from dqcore.ops.code_sums import code_sums_reference
from dqcore.ops.nearest_code import nearest_code_reference
from dqcore.testing import adversarial_codebooks

pytest.importorskip("triton")
if not (backends.interpreting() or torch.cuda.is_available()):
    pytest.skip("needs Triton's interpreter or a GPU", allow_module_level=True)

from dqcore.kernels import code_sums, dynamic_lookup, nearest_code, rounding, settle, tuned
from dqcore.kernels.tokens import Tokens

DEVICE = "cpu" if backends.interpreting() else "cuda"


class NotLaunched:
    """Stands in for a kernel that a test leaves out."""

    def __getitem__(self, grid):
        return lambda *args, **options: None


def problem(num=70, size=150, dim=20, dtype=torch.float32):
    return torch.randn(num, dim, device=DEVICE).to(dtype), torch.randn(size, dim, device=DEVICE).to(dtype)


def lookup_problem():
    maps = [torch.randn(2, 12, 3 * side, 2 * side, device=DEVICE) for side in (1, 2)]
    return maps, torch.randint(-1, 2, (2, 3, 2), device=DEVICE), torch.randn(19, 12, device=DEVICE)


def scan_alone(monkeypatch, x, codebook):
    """What the scan settles by itself, -1 elsewhere."""
    monkeypatch.setattr(nearest_code, "_rescan_kernel", NotLaunched())
    monkeypatch.setattr(nearest_code, "_settle_kernel", NotLaunched())
    codes = torch.full((len(x),), -1, device=DEVICE)
    nearest_code.search(Tokens.of(x), codebook, "exact", codes)
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
    seen, allocate = [], nearest_code.Workspace.allocate
    monkeypatch.setattr(nearest_code.Workspace, "allocate", lambda *args: seen.append(allocate(*args)) or seen[-1])
    monkeypatch.setattr(rounding, "ACCUMULATION", 1e-3)
    assert torch.equal(
        nearest_code.nearest_code_fwd(x, codebook, "exact"), nearest_code_reference(x, codebook, "exact")
    )
    found = torch.cat([work.found for work in seen])
    assert (found > settle.LIST).any()
    assert (found <= settle.LIST).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [8, 20, 70])
def test_scan_settles_most_and_only_rightly(monkeypatch, dtype, dim):
    x, codebook = problem(num=300, dim=dim, dtype=dtype)
    codes = scan_alone(monkeypatch, x, codebook)
    settled = codes >= 0
    assert settled.float().mean() > 0.9
    assert torch.equal(codes[settled], nearest_code_reference(x, codebook, "exact")[settled])


@pytest.mark.parametrize("case", ["duplicates", "all_equal", "huge", "subnormal", "common_mean", "near_duplicates"])
@pytest.mark.parametrize("dim", [8, 30])
def test_scan_never_guesses(monkeypatch, case, dim):
    x, codebook = (t.to(DEVICE) for t in adversarial_codebooks(500, 60, dim)[case])
    codes = scan_alone(monkeypatch, x, codebook)
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
    for actual, expected in zip(
        code_sums.code_sums_fwd(x, codes, size), code_sums_reference(x.double(), codes, size), strict=True
    ):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-4)


def test_mixed_dtypes():
    x, codebook = problem()
    for a, b in ((torch.float16, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)):
        codes = nearest_code.nearest_code_fwd(x.to(a), codebook.to(b), "exact")
        assert torch.equal(codes, nearest_code_reference(x.to(a), codebook.to(b), "exact"))


def test_repeats_are_identical():
    maps, grain, codebook = lookup_problem()
    first = dynamic_lookup.dynamic_lookup_fwd(maps, grain, codebook, True)
    for one, other in zip(first, dynamic_lookup.dynamic_lookup_fwd(maps, grain, codebook, True), strict=True):
        assert torch.equal(one, other)
    gradients = [torch.randn_like(first[1]), torch.randn_like(first[2])]
    runs = [dynamic_lookup.dynamic_lookup_bwd(maps, grain, first[1], *gradients) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_lookup_writes_every_cell(monkeypatch):
    """Outputs begin as garbage; regions without a code must still end as -1 and 0."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **options: empty(*args, **options).fill_(77))
    maps, grain, codebook = lookup_problem()
    codes, quantized, error, *_ = dynamic_lookup.dynamic_lookup_fwd(maps, grain, codebook, False)
    none = (grain < 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert none.any()
    assert ((codes == -1) == none).all()
    assert (quantized.permute(0, 2, 3, 1)[none] == 0).all()
    assert (error[none] == 0).all()
    assert (error[~none] < 76).all()


@pytest.mark.parametrize("chunk", [32, 128])
@pytest.mark.parametrize("share", ["even", "one takes all", "none"])
def test_code_sums_of_any_share(monkeypatch, chunk, share):
    monkeypatch.setattr(code_sums, "CHUNK", chunk)
    x = torch.randn(333, 70, device=DEVICE)
    codes = torch.randint(-1, 3, (333,), device=DEVICE)
    if share != "even":
        codes.fill_(1 if share == "one takes all" else -1)
    counts, sums = code_sums.code_sums_fwd(x, codes, 3)
    expected_counts, expected_sums = code_sums_reference(x.double(), codes, 3)
    assert torch.equal(counts.double(), expected_counts)
    torch.testing.assert_close(sums.double(), expected_sums, rtol=1e-5, atol=1e-4)


def test_kernels_have_one_name():
    """A second import as ``kernels`` would compile and cache everything twice."""
    path = Path(nearest_code.__file__).with_name("__init__.py")
    spec = importlib.util.spec_from_file_location("kernels", path)
    with pytest.raises(ImportError, match=r"import dqcore\.kernels"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
