"""How codebooks start, learn and restart, as their quantizer trains them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from quantizer_inputs import buffers, inputs, unchanged
from safetensors.torch import load_file

from dqcore import DynamicQuantizer
from dqcore.codebook import EMA, Gradient, KMeans, RandomRestart
from dqcore.errors import InputError
from dqcore.ops.layout import merge_maps
from dqcore.testing import assert_close

DATA = Path(__file__).parent / "fixtures"


def test_one_training_step_matches_the_recording():
    data = load_file(DATA / "ema_step.safetensors")
    quantizer = DynamicQuantizer.paper(16, 32)
    quantizer.codebook.replace(data["codebook_before"], torch.ones(32, dtype=torch.bool))
    quantizer.codebook.cluster_size.copy_(data["cluster_size_before"])
    quantized, codes, loss = quantizer(data["input"])
    assert torch.equal(codes, data["codes"])
    assert_close(quantized, data["quantized"])
    assert_close(loss, data["loss"][0])
    assert_close(quantizer.codebook.cluster_size, data["cluster_size_after"])
    assert_close(quantizer.codebook.embed_sum, data["embed_ema_after"])
    assert_close(quantizer.codebook.codes, data["codebook_after"])


def test_each_code_moves_the_averages_once():
    maps, grain = inputs()
    quantizer = DynamicQuantizer(8, 19, 2, learning=EMA(decay=0.5))
    before = quantizer.codebook.embed_sum.clone()
    codes = quantizer(maps, grain).codes
    assert_close(quantizer.codebook.cluster_size.sum(), 0.5 * 19 + 0.5 * (4**grain).sum())
    fine = (grain == 1).repeat_interleave(2, 1).repeat_interleave(2, 2)
    expected = before / 2
    for values, code, here in ((maps[0], codes[:, ::2, ::2], grain == 0), (maps[1], codes, fine)):
        expected = expected.index_add(0, code[here], 0.5 * values.permute(0, 2, 3, 1)[here])
    assert_close(quantizer.codebook.embed_sum, expected)


def test_unused_codes_stay_finite_without_restart():
    quantizer = DynamicQuantizer.paper(4, 64)
    for _ in range(50):
        quantizer(torch.randn(1, 4, 2, 2))
    assert quantizer.codebook.codes.norm(dim=1).max() < 10


def test_gradient_codebook_follows_the_squared_error():
    maps, grain = inputs(levels=2)
    quantizer = DynamicQuantizer(8, 19, 2, learning=Gradient())
    quantizer.codebook.weight.data[:19] = torch.randn(19, 8)
    out = quantizer(maps, grain)
    (grad,) = torch.autograd.grad(out.loss, quantizer.codebook.weight)
    weight = quantizer.codebook.weight.detach().clone().requires_grad_()
    squared = (
        torch.nn.functional.embedding(out.codes, weight).permute(0, 3, 1, 2) - merge_maps(maps, grain).detach()
    ).square()
    repeats = (4.0 ** (1 - grain)).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    (expected,) = torch.autograd.grad((squared / repeats).mean(), weight)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)
    assert not grad[19].any()


@pytest.mark.parametrize("learning", [EMA(decay=0.8), Gradient()], ids=str)
def test_codes_approach_the_data(learning):
    quantizer = DynamicQuantizer(2, 4, learning=learning)
    centres = torch.tensor([[4.0, 4], [-4, 4], [4, -4], [-4, -4]])
    quantizer.codebook.replace(centres / 4, torch.ones(4, dtype=torch.bool))
    optimizer = torch.optim.SGD([p for p in quantizer.parameters() if p.requires_grad] or [torch.zeros(1)], lr=2.0)
    for _ in range(100):
        z = (centres[torch.randint(0, 4, (1, 8, 8))] + 0.1 * torch.randn(1, 8, 8, 2)).permute(0, 3, 1, 2)
        loss = quantizer(z).loss
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(quantizer.codebook.codes.detach(), centres, rtol=0, atol=0.1)


def test_kmeans_starts_from_the_first_batch():
    z = torch.randn(4, 3, 8, 8) + 5
    quantizer = DynamicQuantizer(3, 16, initialisation=KMeans())
    random = DynamicQuantizer(3, 16)
    assert not bool(quantizer.initialised)
    assert float(quantizer(z).loss) < 0.2 * float(random(z).loss)
    assert bool(quantizer.initialised)
    reloaded = DynamicQuantizer(3, 16, initialisation=KMeans())
    reloaded.load_state_dict(quantizer.state_dict())
    before = buffers(reloaded)
    reloaded.freeze()(torch.randn(4, 3, 8, 8))
    assert unchanged(reloaded, before)


def test_a_codebook_starts_where_its_buffers_are_written_in_place():
    """As DDP gives the first process's buffers to the others, or an average of weights is swapped in."""
    z, trained, other = torch.randn(4, 3, 8, 8), *(DynamicQuantizer(3, 16, initialisation=KMeans()) for _ in range(2))
    codes = trained(z).codes
    with pytest.raises(ValueError, match="codebook: it starts from the first training batch"):
        other.eval()(z)
    for mine, its in zip(other.buffers(), trained.buffers(), strict=True):
        mine.copy_(its)
    assert torch.equal(other.embed(codes), trained.embed(codes))
    assert torch.equal(other(z).codes, trained.eval()(z).codes)


def test_kmeans_with_fewer_vectors_than_codes():
    quantizer = DynamicQuantizer(3, 50, initialisation=KMeans())
    assert quantizer(torch.randn(1, 3, 2, 2)).loss.isfinite()


def test_codes_around_few_vectors_lie_close_and_apart():
    vectors = torch.randn(4, 3)
    with pytest.warns(UserWarning, match="4 distinct vectors for 50 codes"):
        codes = KMeans()(vectors, 50, 3)
    assert len(codes.unique(dim=0)) == 50
    assert torch.cdist(codes, vectors).min(1).values.max() < 0.01 * torch.cdist(vectors, vectors).max()


def test_restart_revives_unused_codes():
    quantizer = DynamicQuantizer(4, 256, restart=RandomRestart(threshold=0.9))
    with torch.no_grad():
        quantizer.codebook.codes[5:] = 1e3
    for _ in range(30):
        quantizer(torch.randn(4, 4, 16, 16))
    assert quantizer.usage > 0.9
    assert quantizer.codebook.codes.abs().max() < 10
    ratio = quantizer.codebook.embed_sum / quantizer.codebook.cluster_size[:, None]
    torch.testing.assert_close(ratio, quantizer.codebook.codes, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("decay", [float("nan"), -0.1, 1.5, float("inf")])
def test_decays_that_are_none(decay):
    for learning in (EMA, Gradient):
        with pytest.raises(ValueError, match="decay: expected a number in"):
            learning(decay=decay)


def test_numbers_of_strategies_that_are_none():
    for eps in (-1e-5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="eps: expected a number from 0 up"):
            EMA(eps=eps)
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"threshold: expected a share in \[0, 1\]"):
            RandomRestart(threshold)
    with pytest.raises(ValueError, match="iterations: expected at least 0, got -1"):
        KMeans(-1)


def _numbers(value):
    """Each number of a quantizer's strategies, as they keep it."""
    made = DynamicQuantizer(4, 8, learning=EMA(decay=value, eps=value), commitment=value)
    kept = [made.commitment, made.codebook.decay, made.codebook.eps, Gradient(value).decay]
    return [*kept, RandomRestart(value).threshold]


@pytest.mark.parametrize("value", (np.float32(0.5), np.float64(0.5), np.int64(1), np.float16(1), 1))
def test_numbers_of_strategies_are_floats(value):
    """Triton takes no scalar of NumPy, and compiles anew for a whole number."""
    assert [(type(kept), kept) for kept in _numbers(value)] == [(float, value)] * 5
    assert type(EMA(every=np.int64(2)).every) is type(KMeans(np.int32(2)).iterations) is int


@pytest.mark.parametrize("value", (torch.tensor(0.5), np.array(0.5), "0.5", True, None, 1j))
def test_what_is_no_number_of_a_strategy(value):
    for name, call in {
        "commitment": lambda: DynamicQuantizer(4, 8, commitment=value),
        "decay": lambda: EMA(decay=value),
        "eps": lambda: EMA(eps=value),
        "threshold": lambda: RandomRestart(value),
    }.items():
        with pytest.raises(InputError, match=f"^{name}: expected a number, got {re.escape(repr(value))}"):
            call()
    with pytest.raises(InputError, match=r"^decay: expected a number, got"):
        Gradient(value)
    for name, call in {"every": lambda: EMA(every=value), "iterations": lambda: KMeans(value)}.items():
        with pytest.raises(InputError, match=f"^{name}: expected a whole number, got"):
            call()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"restart": True}, r"restart: expected RandomRestart\(..\) or None, got True"),
        ({"metric": "cosine"}, r"metric: expected Euclidean\(\) or Cosine\(\), got 'cosine'"),
        ({"learning": EMA}, r"learning: expected EMA\(..\) or Gradient\(..\), got <class"),
        ({"initialisation": None}, "initialisation: expected"),
        ({"estimator": 1}, "estimator: expected"),
        ({"commitment": -1.0}, "commitment: expected at least 0, got -1.0"),
        ({"commitment": float("inf")}, "commitment: expected at least 0, got inf"),
        ({"commitment": float("nan")}, "commitment: expected at least 0, got nan"),
    ],
)
def test_settings_that_are_none(setting, message):
    with pytest.raises(ValueError, match=message):
        DynamicQuantizer(4, 8, **setting)


def test_a_codebook_without_dimensions():
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"codebook_dim: expected at least 1 and whole, got {size}"):
            DynamicQuantizer(8, 16, codebook_dim=size)
