import copy
import gc
from pathlib import Path

import pytest
import torch
from quantizer_inputs import buffers, inputs, unchanged
from safetensors.torch import load_file, save_file

import dqcore
from dqcore import DynamicQuantizer
from dqcore.codebook import EMA, Gradient, KMeans, RandomRestart
from dqcore.ops.layout import merge_maps
from dqcore.testing import assert_close

DATA = Path(__file__).parent / "fixtures"
#: Older releases compile a training step in parts, with the same results.
WHOLE = torch.__version__ >= (2, 11)


def test_loss_counts_each_code_once():
    maps, grain = inputs(levels=3)
    quantizer = DynamicQuantizer(8, 19, 3, commitment=0.3).eval()
    out = quantizer(maps, grain)
    merged = merge_maps(maps, grain)
    repeats = (4.0 ** (2 - grain)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    squared = (out.map - merged).square() / repeats
    assert_close(out.loss, (1.3 * squared).mean())
    commitment = 0.3 * ((out.map.detach() - merged).square() / repeats).mean()
    for a, b in zip(torch.autograd.grad(out.loss, maps), torch.autograd.grad(commitment, maps), strict=True):
        assert_close(a, b)


def test_layouts_agree():
    z = torch.randn(2, 8, 6, 4)
    quantizer = DynamicQuantizer(8, 19).eval()
    last = copy.deepcopy(quantizer)
    last.channel_last = True
    expected = quantizer(z)
    grid = last(z.permute(0, 2, 3, 1))
    assert torch.equal(grid.map.permute(0, 3, 1, 2), expected.map)
    assert torch.equal(grid.codes, expected.codes)
    sequence = last(z.flatten(2).mT)
    assert torch.equal(sequence.map.mT.reshape(2, 8, 6, 4), expected.map)
    assert torch.equal(sequence.codes, expected.codes.flatten(1))


def test_merged_map_equals_pyramid():
    maps, grain = inputs(levels=3)
    quantizer = DynamicQuantizer(8, 19, 3).eval()
    expected = quantizer(maps, grain)
    merged = merge_maps(maps, grain).detach().requires_grad_()
    out = quantizer(merged, grain)
    assert torch.equal(out.codes, expected.codes)
    assert_close(out.map, expected.map)
    assert_close(out.loss, expected.loss)


def test_projection_leads_there_and_back():
    quantizer = DynamicQuantizer(32, 50, codebook_dim=4)
    assert quantizer.codebook.codes.shape == (50, 4)
    z = torch.randn(2, 32, 4, 4, requires_grad=True)
    out = quantizer(z)
    assert out.map.shape == z.shape
    out.map.square().mean().backward()
    assert all(p.grad is not None for n, p in quantizer.named_parameters() if "project" in n)


def test_masked_regions_cost_and_count_nothing():
    maps, grain = inputs()
    mask = torch.rand(grain.shape) > 0.4
    cells = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    quantizer = DynamicQuantizer(8, 19, 2)
    other = copy.deepcopy(quantizer)
    with torch.no_grad():
        noisy = [m.clone().masked_fill_(~mask.repeat_interleave(1 << g, 1).repeat_interleave(1 << g, 2)[:, None], 9e9)
                 for g, m in enumerate(maps)]  # fmt: skip
    out, same = quantizer(maps, grain, mask), other(noisy, grain, mask)
    assert torch.equal(out.codes < 0, ~cells)
    assert not out.map[(~cells)[:, None].expand_as(out.map)].any()
    assert torch.equal(out.codes, same.codes)
    assert torch.equal(out.loss, same.loss)
    assert torch.equal(quantizer.codebook.codes, other.codebook.codes)


def test_sequence_mask_equals_the_shorter_sequence():
    quantizer = DynamicQuantizer(8, 19, channel_last=True).eval()
    z, lengths = torch.randn(2, 7, 8), torch.tensor([7, 4])
    mask = torch.arange(7) < lengths[:, None]
    out = quantizer(z, mask=mask)
    assert torch.equal(out.codes[1, :4], quantizer(z[1:, :4]).codes[0])
    assert (out.codes[1, 4:] == -1).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_evaluation_and_freezing_move_nothing(frozen):
    maps, grain = inputs()
    quantizer = DynamicQuantizer(8, 19, 2, restart=RandomRestart()).freeze(frozen).train(frozen)
    before = buffers(quantizer)
    quantizer(maps, grain)
    assert unchanged(quantizer, before)
    quantizer.freeze(False).train()(maps, grain)
    assert not unchanged(quantizer, before)


def test_embed_returns_the_vectors():
    maps, grain = inputs()
    quantizer = DynamicQuantizer(8, 19, 2, codebook_dim=3).eval()
    out = quantizer(maps, grain)
    assert_close(quantizer.embed(out.codes), out.map)
    hole = torch.full((1, 2, 2), 19)
    expected = quantizer.project_out(quantizer.codebook.weight[19].view(1, -1, 1, 1))
    assert_close(quantizer.embed(hole), expected.expand(1, 8, 2, 2))


def test_usage_and_perplexity():
    quantizer = DynamicQuantizer.paper(2, 8, learning=EMA(decay=0.5))
    with torch.no_grad():
        quantizer.codebook.codes.copy_(torch.eye(8)[:, :2] * 5 + torch.arange(8)[:, None])
    for _ in range(130):
        quantizer(quantizer.codebook.codes[:2].detach().T.reshape(1, 2, 2, 1).clone())
    assert quantizer.usage == 2 / 8
    assert quantizer.perplexity == pytest.approx(2, abs=1e-3)


def test_autocast_keeps_the_codebook_in_float32():
    maps, grain = inputs(dim=16)
    with torch.autocast("cpu", torch.bfloat16):
        quantizer = DynamicQuantizer(16, 19, 2, codebook_dim=8)
        out = quantizer(maps, grain)
    assert out.map.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    state = quantizer.state_dict()
    assert all(state[f"codebook.{name}"].dtype == torch.float32 for name in ("weight", "embed_sum", "cluster_size"))
    half = [m.detach().bfloat16() for m in maps]
    exact, plain = DynamicQuantizer(16, 19, 2).eval(), [m.float() for m in half]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact(half, grain).codes, exact(plain, grain).codes)


@pytest.mark.parametrize("learning", [EMA(), Gradient()], ids=str)
def test_compiles_as_one_graph(learning):
    maps, grain = inputs()
    quantizer = DynamicQuantizer(8, 19, 2, learning=learning, restart=RandomRestart(0.0))
    other = copy.deepcopy(quantizer)
    compiled = torch.compile(quantizer, fullgraph=WHOLE, backend="aot_eager")
    for _ in range(2):
        out, expected = compiled(maps, grain), other(maps, grain)
        assert torch.equal(out.codes, expected.codes)
        assert_close(out.loss, expected.loss)
        for a, b in zip(torch.autograd.grad(out.map.sum() + out.loss, maps),
                        torch.autograd.grad(expected.map.sum() + expected.loss, maps), strict=True):  # fmt: skip
            assert_close(a, b)
    assert_close(quantizer.codebook.codes, other.codebook.codes)


@pytest.mark.slow
def test_compiles_with_inductor():
    """The graph of a uniform start is part of that of k-means; the tests above have it."""
    maps, grain = inputs()
    quantizer = DynamicQuantizer(8, 19, 2, initialisation=KMeans())
    other = copy.deepcopy(quantizer)
    out, expected = torch.compile(quantizer, fullgraph=WHOLE)(maps, grain), other(maps, grain)
    assert torch.equal(out.codes, expected.codes)
    assert_close(quantizer.codebook.codes, other.codebook.codes)


def test_state_survives_a_file(tmp_path):
    maps, grain = inputs()
    quantizer = DynamicQuantizer(8, 19, 2, initialisation=KMeans())
    quantizer(maps, grain)
    save_file(quantizer.state_dict(), tmp_path / "q.safetensors")
    other = DynamicQuantizer(8, 19, 2, initialisation=KMeans())
    other.load_state_dict(load_file(tmp_path / "q.safetensors"))
    for _ in range(2):
        a, b = quantizer(maps, grain), other(maps, grain)
        assert torch.equal(a.codes, b.codes)
        assert torch.equal(a.loss, b.loss)


@pytest.mark.slow
def test_memory_stays_flat():
    maps, grain = inputs()
    quantizer = DynamicQuantizer(8, 19, 2, restart=RandomRestart())
    gc.collect()

    def steps(number):
        for _ in range(number):
            out = quantizer(maps, grain)
            (out.map.sum() + out.loss).backward()
        gc.collect()
        return sum(isinstance(item, torch.Tensor) for item in gc.get_objects())

    early = steps(10)
    assert steps(1000) <= early + 2
    assert all(not tensor.requires_grad for tensor in quantizer.buffers())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, m, g: q(m), "grain: expected a grain map"),
        (lambda q, m, g: q(m[:1], g), "features: expected a list of 2 feature maps"),
        (lambda q, m, g: q(torch.zeros(2, 7, 4, 4), g), "features: expected"),
        (lambda q, m, g: q(m, g + 5), "grain: expected values"),
        (lambda q, m, g: q(m, g[:, :2]), r"grain: expected a grain map \(2, 3, 4\)"),
        (lambda q, m, g: q(m, g, g), "mask: expected bool"),
        (lambda q, m, g: q.embed(g.float()), "codes: expected"),
        (lambda q, m, g: DynamicQuantizer(8, 0), "codebook_size: expected at least 1"),
    ],
)
def test_invalid_input(call, message):
    maps, grain = inputs()
    with pytest.raises((TypeError, ValueError), match=message):
        call(DynamicQuantizer(8, 19, 2), maps, grain)


def test_reference_backend_agrees():
    maps, grain = inputs()
    quantizer = DynamicQuantizer(8, 19, 2)
    other = copy.deepcopy(quantizer)
    out = quantizer(maps, grain)
    with dqcore.backend("reference"):
        expected = other(maps, grain)
    assert torch.equal(out.codes, expected.codes)
    assert_close(out.loss, expected.loss)
    assert_close(quantizer.codebook.codes, other.codebook.codes)


@pytest.mark.parametrize("name", ["dim", "codebook_size", "num_granularities"])
def test_none_is_no_number(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1 and whole, got None"):
        dqcore.DynamicQuantizer(**{"dim": 8, "codebook_size": 16, name: None})
