import math

import pytest
import torch

import dqcore
from dqcore.errors import InputError
from dqcore.metrics import bits_per_pixel, code_usage, codes_per_image, entropy_bits_per_pixel, perplexity
from dqcore.metrics.coding import code_counts, grain_counts


def test_rate_of_a_map_counted_by_hand():
    grain = torch.tensor([[[0, 1], [1, 2]], [[0, 0], [0, 0]]])  # 1 + 4 + 4 + 16 codes, and 4
    assert codes_per_image(grain).tolist() == [25, 4]
    rate = bits_per_pixel(grain, codebook_size=1024, num_granularities=3, num_pixels=64 * 64)
    expected = [(25 * 10 + 4 * math.log2(3)) / 4096, (4 * 10 + 4 * math.log2(3)) / 4096]
    torch.testing.assert_close(rate, torch.tensor(expected, dtype=torch.float64))


def test_one_granularity_needs_no_grain_map():
    grain = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert bits_per_pixel(grain, 256, 1, 64 * 64).item() == 16 * 8 / 4096


@pytest.mark.parametrize("granularities", [1, 2, 3])
def test_each_code_counts_once(granularities):
    """Against the packed sequence, which holds every code once."""
    grain = torch.randint(granularities, (3, 5, 4))
    maps = [torch.randn(3, 4, 5 * 2**g, 4 * 2**g) for g in range(granularities)]
    codes = dqcore.DynamicQuantizer(4, 12, granularities).eval()(maps, grain).codes
    counts = code_counts(codes, grain, 12)
    sequence = dqcore.pack_codes(codes, grain, order="row-first", num_granularities=granularities)
    assert torch.equal(counts, torch.bincount(sequence.codes, minlength=12))
    assert int(counts.sum()) == int(codes_per_image(grain).sum())


def test_usage_and_perplexity():
    counts = torch.tensor([5, 5, 5, 5, 0, 0, 0, 0])
    assert code_usage(counts) == 0.5
    assert perplexity(counts) == pytest.approx(4)
    assert perplexity(torch.tensor([7, 0])) == pytest.approx(1)
    for measure in (code_usage, perplexity):
        with pytest.raises(InputError, match=r"counts: expected \(K,\), how often .* got \(2, 4, 4\); .*bincount"):
            measure(torch.zeros(2, 4, 4, dtype=torch.int64))


def test_entropy_coding():
    """Eight even codes cost 3 bits, even grains 1 bit; a skewed code costs less than log2 K."""
    even = entropy_bits_per_pixel(torch.full((8,), 4), torch.tensor([6, 6]), num_pixels=100)
    assert even == pytest.approx((32 * 3 + 12) / 100)
    skewed = torch.tensor([25, 1, 1, 1, 1, 1, 1, 1])
    p = skewed / 32
    expected = 32 * float(-(p * p.log2()).sum()) / 100
    assert entropy_bits_per_pixel(skewed, torch.tensor([12, 0]), 100) == pytest.approx(expected)


def test_grain_counts():
    assert grain_counts(torch.tensor([[[0, 2], [2, 2]]]), 4).tolist() == [1, 0, 3, 0]
