"""Ours against what LlamaGen's quantizer did, recorded with ``record.py``."""

import pytest
import torch
from torch.nn import functional as F

import dqcore.compat.llamagen as ours
from dqcore.compat.entropy import _logits, entropy_loss
from dqcore.errors import InputError

LIBRARY, OURS = "llamagen", ours


def test_does_what_theirs_did(recorded, check_trace):
    check_trace(recorded)


def test_where_codes_differ_ours_are_nearer(recorded, check_far):
    quantizer = recorded.quantizer
    share = check_far(recorded, quantizer.l2_norm)
    assert 0.1 < share <= 0.5  # of 32 vectors a thousand units from the origin


def test_state_dict_has_the_same_keys(recorded):
    first = [name.removeprefix("first/") for name in recorded.theirs if name.startswith("first/")]
    used = ["codebook_used"] if recorded.quantizer.show_usage else []
    assert sorted(recorded.quantizer.state_dict()) == sorted(first + used)


def _entropy(x, codebook):
    logits = -torch.cdist(x, codebook).square() / 0.01
    p = logits.softmax(1)
    mean = p.mean(0)
    return -(p * logits.log_softmax(1)).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()


@pytest.mark.parametrize("vectors", [5, 700])
def test_entropy_loss_and_its_gradients_in_blocks(vectors, monkeypatch):
    monkeypatch.setattr("dqcore.compat.entropy.BLOCK", 2**12)
    x = (0.3 * torch.randn(vectors, 6, dtype=torch.float64)).requires_grad_()
    codebook = (0.3 * torch.randn(40, 6, dtype=torch.float64)).requires_grad_()
    expected = torch.autograd.grad(_entropy(x, codebook), [x, codebook])
    torch.testing.assert_close(entropy_loss(x, codebook), _entropy(x, codebook))
    for theirs, mine in zip(expected, torch.autograd.grad(entropy_loss(x, codebook), [x, codebook]), strict=True):
        torch.testing.assert_close(mine, theirs)
    single = [values.detach().float().requires_grad_() for values in (x, codebook)]
    for theirs, mine in zip(expected, torch.autograd.grad(entropy_loss(*single), single), strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()  # the temperature multiplies float32's rounding by 100


def test_blocks_of_a_gpu_are_large():
    x, codebook = torch.randn(8192, 8, device="meta"), torch.randn(16384, 8, device="meta")
    assert len(list(_logits(x, codebook, 0.01))) == 4


def test_usage_counts_the_codes_of_the_last_65536_vectors():
    quantizer = ours.VectorQuantizer(16, 4, 0.25, 0.0, True, True)
    z = F.normalize(torch.randn(1, 4, 2, 2), dim=1)
    _, (*_, usage), (_, _, codes) = quantizer(z)
    assert usage == len({0, *codes.tolist()}) / 16
    assert quantizer.codebook_used[-4:].tolist() == codes.tolist()
    with torch.no_grad():
        quantizer(torch.randn(65, 4, 32, 32))
    assert quantizer.codebook_used.shape == (65536,)
    kept = quantizer.codebook_used.clone()
    assert quantizer.eval()(z)[1] == (None, None, None, 0)
    assert torch.equal(quantizer.codebook_used, kept)


def test_wrong_channels_are_refused():
    with pytest.raises(InputError, match="z: expected"):
        ours.VectorQuantizer(16, 4, 0.25, 0.0, True, True)(torch.randn(1, 5, 2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_entropy_loss_is_the_same_under_autocast(dtype):
    quantizer, x = ours.VectorQuantizer(64, 8, 0.25, 0.1, True, False), torch.randn(2, 8, 4, 4, requires_grad=True)

    def gradients():
        losses = quantizer(x)[1]
        return torch.autograd.grad(sum(losses[:3]), [x, quantizer.embedding.weight])

    expected = gradients()
    with torch.autocast("cpu", dtype):
        found = gradients()
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, plain)
