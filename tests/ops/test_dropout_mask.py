import pytest
import torch

from dqcore.ops import dropout_mask, varlen_attention


def mask(heads=4, rows=96, columns=200, p=0.1, seed=(11, 3)):
    return dropout_mask(torch.tensor(seed), heads, rows, columns, p)


def test_known_answer():
    """Philox-4x32-7 of counter 0 and key 0, from the authors' test vectors, by columns."""
    words = [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    values = [(word >> shift) & 255 for word in words for shift in (0, 8, 16, 24)]
    columns = [8 * (i // 2) + i % 2 for i in range(16)]
    for p in (0.25, 0.5, 0.75):
        expected = [value < 256 * (1 - p) for value in values]
        assert mask(1, 1, 64, p, (0, 0))[0, 0, columns].tolist() == expected


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
    for p in (-0.1, 0.999, 1.5):
        with pytest.raises(ValueError, match="dropout_p: expected a probability"):
            mask(p=p)
