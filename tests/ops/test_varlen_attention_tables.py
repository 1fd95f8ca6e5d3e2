"""The tables of packed attention's tiles: complete for every GPU, and nothing but speed depends on them."""

import itertools

import pytest
import torch

import dqcore
from dqcore import backends
from dqcore.ops import varlen_attention
from dqcore.testing import assert_close

pytest.importorskip("triton")
if not (backends.interpreting() or torch.cuda.is_available()):
    pytest.skip("needs Triton's interpreter or a GPU", allow_module_level=True)

from dqcore.kernels import common, tuned, varlen_attention_dkv, varlen_attention_dq
from dqcore.kernels import varlen_attention as forward

DEVICE, BACKEND = ("cpu", "interpreter") if backends.interpreting() else ("cuda", "auto")
kind = forward.kind
STEMS = {"varlen_attention": forward, "varlen_attention_dq": varlen_attention_dq}
STEMS["varlen_attention_dkv"] = varlen_attention_dkv
TILE = ("BLOCK_M", "BLOCK_N", "CHUNK")


@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100, 103, 120])
def test_every_size_has_a_row(monkeypatch, arch):
    """Masks of dropout are made for 32 columns or a multiple of 64."""
    monkeypatch.setattr(common, "architecture", lambda: arch)
    kinds = [("half", "ieee"), ("half", "tf32"), ("float32", "ieee"), ("float32", "tf32x3"), ("float32", "tf32")]
    for stem, (dtype, precision), dim, dropout in itertools.product(STEMS, kinds, (1, 64, 65, 128, 129, 256), (0, 1)):
        config = tuned.config(stem, dtype=dtype, precision=precision, dim=dim, dropout=dropout)
        assert config.keys() == STEMS[stem].CANDIDATES[0].keys()
        assert config["BLOCK_N"] == 32 or config["BLOCK_N"] % 64 == 0
        assert dtype == "float32" or config["CHUNK"] == 256 or dim > 128


def shapes_of(candidates):
    """Tiles without launch options, and few of them: warps change nothing that the interpreter sees."""
    tiles = sorted({tuple(each[name] for name in TILE) for each in candidates if not each["split"]})
    return [dict(zip(TILE, tile, strict=True)) for tile in tiles[:: 1 if DEVICE == "cuda" else 5]]


@pytest.mark.parametrize("stem", STEMS)
def test_tiles_change_only_rounding(stem):
    """Also with dropout, whose mask must not know of tiles."""
    q, k, v = torch.randn(3, 100, 1, 40, device=DEVICE)
    cu = torch.tensor([0, 30, 100], dtype=torch.int32, device=DEVICE)
    options = {"dropout_p": 0.3, "dropout_seed": torch.tensor([5, 6], device=DEVICE)}

    def run():
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = varlen_attention(*leaves, cu, **options)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    with dqcore.backend("reference"):
        expected = run()
    for tile in shapes_of(STEMS[stem].CANDIDATES):
        with dqcore.backend(BACKEND), tuned.force(stem, {**tile, "num_warps": 8, "num_stages": 1}):
            for actual, want in zip(run(), expected, strict=True):
                assert_close(actual / 10, want / 10)


@pytest.mark.parametrize("options", [{}, {"window_size": (9, 4), "causal": False}], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_another_order_on_hopper(monkeypatch, dropout, options):
    """There the backward pass to keys and values multiplies first and weighs later."""
    q, k, v = torch.randn(3, 100, 1, 40, device=DEVICE)
    cu, seed = torch.tensor([0, 30, 100], dtype=torch.int32, device=DEVICE), torch.tensor([5, 6], device=DEVICE)
    options = options | {"dropout_p": dropout, "dropout_seed": seed if dropout else None, "precision": "ieee"}
    monkeypatch.setattr(varlen_attention_dkv, "architecture", lambda: 90)
    results = []
    for name in ("reference", BACKEND):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        with dqcore.backend(name):
            out = varlen_attention(*leaves, cu, **options)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for expected, actual in zip(*results, strict=True):
        assert_close(actual / 10, expected / 10)


def test_products_of_bfloat16_parts_are_as_precise(monkeypatch):
    """On Hopper float32's tiles split their factors; nobody can tell by the results."""
    q, k, v = torch.randn(3, 90, 1, 40, device=DEVICE)
    cu, grad = torch.tensor([0, 25, 90], dtype=torch.int32, device=DEVICE), torch.randn(90, 1, 40, device=DEVICE)
    monkeypatch.setattr(common, "architecture", lambda: 90)
    monkeypatch.setattr(tuned, "_architecture", lambda device: 90)
    splits = []
    monkeypatch.setattr(forward, "kind", lambda *args: splits.append(args[-1]) or kind(*args))
    for module in (varlen_attention_dq, varlen_attention_dkv):
        monkeypatch.setattr(module, "kind", forward.kind)

    def run(*leaves):
        leaves = [x.clone().requires_grad_() for x in leaves]
        out = varlen_attention(*leaves, cu)
        return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    with dqcore.backend("reference"):
        exact = run(q.double(), k.double(), v.double())
        plain = run(q, k, v)
    with dqcore.backend(BACKEND):
        found = run(q, k, v)
    assert splits == [1, 1, 1]
    for actual, expected, other in zip(found, exact, plain, strict=True):
        assert (actual - expected).abs().max() < 4 * (other - expected).abs().max()


@pytest.mark.parametrize(("dim", "dtype", "precision"), [(256, torch.bfloat16, "ieee"), (128, torch.float32, "tf32x3")])
def test_wide_heads(dim, dtype, precision):
    """Heads too wide for one product at a time, with dropout, forward and backward."""
    q, k, v = torch.randn(3, 90, 1, dim, device=DEVICE, dtype=dtype)
    cu = torch.tensor([0, 20, 90], dtype=torch.int32, device=DEVICE)
    options = {"dropout_p": 0.3, "dropout_seed": torch.tensor([5, 6], device=DEVICE), "precision": precision}
    results = []
    for name in (BACKEND, "reference"):
        leaves = [x.to(torch.float64 if name == "reference" else dtype, copy=True).requires_grad_() for x in (q, k, v)]
        with dqcore.backend(name):
            out = varlen_attention(*leaves, cu, **options)
            results.append([out, *torch.autograd.grad(out.sum(), leaves)])
    for actual, want in zip(*results, strict=True):
        scale = 3 * want.abs().max()
        assert_close(actual / scale, want / scale, dtype)
