"""Draws from logits, and the random numbers that they use."""

import numpy as np
import pytest
import torch

from dqcore.models.sampling.draw import Draw, uniforms


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, 0.5]]).expand(40_000, -1)
    numbers = uniforms(7, torch.arange(40_000), 1)[:, 0]
    drawn = Draw(temperature=0.7)(logits, numbers)
    shares = torch.bincount(drawn, minlength=5) / 40_000
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(0), atol=0.01, rtol=0)
    assert shares[2] == 0


def test_draws_respect_top_k_and_top_p():
    logits = torch.randn(500, 30)
    numbers = uniforms(3, torch.arange(500), 1)[:, 0]
    best = logits.argsort(1, descending=True)
    assert bool((Draw(top_k=4)(logits, numbers)[:, None] == best[:, :4]).any(1).all())
    assert torch.equal(Draw(top_k=1)(logits, numbers), best[:, 0])
    kept = (logits.softmax(1).gather(1, best).cumsum(1) < 0.6).sum(1)  # the one that passes 0.6 is kept as well
    places = (Draw(top_p=0.6)(logits, numbers)[:, None] == best).int().argmax(1)
    assert bool((places <= kept).all())
    assert bool((places == kept).any())


def test_extreme_numbers_never_draw_what_is_forbidden():
    logits = torch.full((2, 6), -torch.inf)
    logits[:, 2:4] = torch.tensor([1.0, 1.0])
    assert Draw()(logits, torch.tensor([0, 2**23 - 1])).tolist() == [2, 3]


def test_uniforms_depend_on_seed_and_sample_alone():
    numbers = uniforms(5, torch.arange(100), 50)
    assert torch.equal(uniforms(5, torch.tensor([70, 3]), 50), numbers[[70, 3]])
    assert torch.equal(uniforms(5, torch.arange(100), 20), numbers[:, :20])
    assert not torch.equal(uniforms(6, torch.arange(100), 50), numbers)
    values = numbers.double() / 2**23
    assert abs(float(values.mean()) - 0.5) < 0.02
    assert abs(float(torch.corrcoef(values.T).triu(1).sum())) < 60  # of 1225 pairs
    assert numbers.unique().numel() > 4990
    assert uniforms(-1, torch.tensor([0]), 1).shape == uniforms(2**70, torch.tensor([0]), 1).shape


def split_mix(z):
    """SplitMix64's finaliser as its authors print it."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63])
def test_uniforms_never_change(seed):
    """A seed and an index name a sample: it is to be drawn again by later versions, and on other machines."""
    starts = [split_mix((sample + split_mix(seed % 2**64)) % 2**64) for sample in (0, 1, 999)]
    expected = [
        [split_mix((start + place * 0x9E3779B97F4A7C15) % 2**64) >> 41 for place in (1, 2, 3)] for start in starts
    ]
    assert uniforms(seed, torch.tensor([0, 1, 999]), 3).tolist() == expected


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_draw_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Draw(**wrong)


def test_settings_are_numbers_of_python():
    """Triton takes no scalar of NumPy."""
    settings = Draw(np.float32(0.5), np.int64(3), np.float64(0.5)).settings
    assert settings == (0.5, 3, 0.5) and [type(value) for value in settings] == [float, int, float]
    for name in ("temperature", "top_p"):
        with pytest.raises(ValueError, match=f"^{name}: expected a number, got tensor"):
            Draw(**{name: torch.tensor(0.5)})
