import contextlib
import itertools

import numpy
import pytest
import torch

from dqcore import backends
from dqcore.ops import dropout_mask, varlen_attention

with contextlib.suppress(ImportError):
    import triton
    import triton.language as tl


def mask(heads=4, rows=96, columns=200, p=0.1, seed=(11, 3)):
    return dropout_mask(torch.tensor(seed), heads, rows, columns, p)


def philox(counter, key, rounds, bits=32):
    """Philox-4x32 and 4x64 as published (Salmon et al., SC 2011), in Python's integers."""
    multipliers = {32: (0xD2511F53, 0xCD9E8D57), 64: (0xD2E7470EE14C6C93, 0xCA5A826395121157)}[bits]
    weyl = {32: (0x9E3779B9, 0xBB67AE85), 64: (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)}[bits]
    word = 2**bits - 1
    for index in range(rounds):
        (high0, low0), (high1, low1) = (divmod(m * c, 2**bits) for m, c in zip(multipliers, counter[::2], strict=True))
        key0, key1 = ((k + index * w) & word for k, w in zip(key, weyl, strict=True))
        counter = (high1 ^ counter[1] ^ key0, low1, high0 ^ counter[3] ^ key1, low0)
    return counter


def test_philox_is_the_published_one():
    """Its rounds as NumPy has them, ten of 64 bits; its 32-bit constants against the authors' answer for zeros."""
    for counter, key in (((0, 0, 0, 0), (0, 0)), ((5, 2**63, 1, 2**40 + 3), (2**64 - 1, 77))):
        generator = numpy.random.Philox(counter=numpy.array(counter, "u8"), key=numpy.array(key, "u8"))
        after = (counter[0] + 1, *counter[1:])  # NumPy counts before it draws
        assert philox(after, key, 10, bits=64) == tuple(generator.random_raw(4).tolist())
    assert philox((0, 0, 0, 0), (0, 0), 10) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


def test_philox_is_tritons():
    if not (backends.has_triton() and backends.interpreting()):
        pytest.skip("needs Triton's interpreter")

    @triton.jit
    def ten_rounds(out, seed, offset):
        a, b, c, d = tl.randint4x(seed, offset, n_rounds=10)
        tl.store(out, a.to(tl.int64))
        tl.store(out + 1, b.to(tl.int64))
        tl.store(out + 2, c.to(tl.int64))
        tl.store(out + 3, d.to(tl.int64))

    for seed, offset in ((0, 0), (2**40 + 5, 12345), (-3, 2**31 - 1)):
        out = torch.zeros(4, dtype=torch.int64)
        ten_rounds[(1,)](out, seed, offset)
        key = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
        assert [word & 0xFFFFFFFF for word in out.tolist()] == list(philox((offset, 0, 0, 0), key, 10))


def test_known_answer():
    """Each byte from its definition: 7 rounds on the counter (column group, row, head, offset)."""
    seed, offset, keep = -(2**62) + 12345, 2**33 + 7, 160
    kept = dropout_mask(torch.tensor([seed, offset]), 3, 40, 130, 1 - keep / 256)
    key = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for head, row, column in itertools.product((0, 2), (0, 1, 39), range(130)):
        words = philox((4 * (column // 64) + column % 8 // 2, row, head, offset & 0xFFFFFFFF), key, 7)
        place = column // 8 % 8 * 2 + column % 2
        byte = (words[place // 4] >> (8 * (place % 4))) & 255
        assert kept[head, row, column] == (byte < keep)


def test_a_function_of_its_coordinates_alone():
    whole = mask()
    assert torch.equal(mask(2, 50, 70), whole[:2, :50, :70])
    for seed in ((12, 3), (11, 4), (11 + 2**40, 3)):
        share = (mask(seed=seed) == whole).float().mean().item()
        assert share == pytest.approx(0.9**2 + 0.1**2, abs=0.01)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keep_rate_is_exact(p):
    kept = mask(8, 256, 256, p).double()
    share = round(256 * (1 - p)) / 256
    assert abs(kept.mean() - share) < 4 * (share * (1 - share) / kept.numel()) ** 0.5
    for axis in (0, 1, 2):  # each head, row and column on its own
        means = kept.transpose(0, axis).flatten(1)
        chi_square = ((means.mean(1) - share).square() * means.shape[1] / (share * (1 - share))).sum()
        assert abs(chi_square - len(means)) < 4.5 * (2 * len(means)) ** 0.5


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("distance", [1, 2, 8, 16, 64])
def test_neighbours_are_independent(axis, distance):
    """Chi-square of the table of pairs, one degree of freedom."""
    kept = mask(80 if axis == 0 else 4, 300 if axis == 1 else 64, 300 if axis == 2 else 128, 0.5).transpose(0, axis)
    first, second = kept[:-distance].flatten().double(), kept[distance:].flatten().double()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert correlation.square() * len(first) < 16


def test_attention_uses_it(route):
    """Equal scores and one-hot values: the output is the mask itself, divided by the row's length and the keep rate."""
    seed = torch.tensor([7, 9], device=route)
    q = torch.zeros(70, 2, 128, device=route)
    v = torch.eye(128, device=route)[:70, None].expand(70, 2, 128)
    cu = torch.tensor([0, 0, 70], dtype=torch.int32, device=route)
    out = varlen_attention(q, q, v, cu, causal=False, dropout_p=0.25, dropout_seed=seed)
    expected = dropout_mask(seed, 2, 70, 70, 0.25).transpose(0, 1).float() / (70 * 0.75)
    torch.testing.assert_close(out[:, :, :70], expected)


def test_invalid_input():
    with pytest.raises(TypeError, match="seed: expected int64"):
        dropout_mask(torch.zeros(2), 1, 1, 1, 0.1)
    with pytest.raises(ValueError, match="seed: expected two values"):
        dropout_mask(torch.zeros(1, dtype=torch.int64), 1, 1, 1, 0.1)
    with pytest.raises(ValueError, match="num_rows: expected at least 0, got -1"):
        dropout_mask(torch.zeros(2, dtype=torch.int64), 1, -1, 1, 0.1)
    for p in (-0.1, 0.999, 1.5):
        with pytest.raises(ValueError, match="dropout_p: expected a probability"):
            mask(p=p)
