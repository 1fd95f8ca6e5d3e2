import itertools

import numpy as np
import pytest
import torch

from dqcore.nn.allocation import allocate, counts_for_codes, counts_for_ratio, counts_wanted, target_shares


def scores(batch, steps, height, width):
    return torch.randn(batch, steps, height, width).sort(1, descending=True).values


def test_highest_scores_get_the_finest():
    wanted = torch.tensor([[[[3.0, 1.0, 2.0, 0.0]]]])
    assert allocate(wanted, torch.tensor([[2, 2]])).tolist() == [[[1, 0, 1, 0]]]


def test_ties_go_by_raster_order():
    assert allocate(torch.zeros(1, 2, 2, 3), torch.tensor([[2, 3, 1]])).flatten().tolist() == [2, 1, 1, 1, 0, 0]


def test_scores_that_are_not_finite_still_give_the_counts():
    wanted = torch.tensor([[[[torch.nan, -torch.inf, torch.inf, 0.0]], [[-torch.inf] * 4]]])
    grain = allocate(wanted, torch.tensor([[1, 1, 2]]))
    assert torch.bincount(grain.flatten()).tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("shares", "counts"),
    [((0.5,), [5, 5]), ((0.0,), [10, 0]), ((1.0,), [0, 10]), ((0.3, 0.3), [4, 3, 3]), ((0.05, 0.95), [0, 0, 10])],
)
def test_counts_for_ratio(shares, counts):
    assert counts_for_ratio(shares, 10) == counts


@pytest.mark.parametrize("granularities", [2, 3, 4])
def test_budget_is_met_as_closely_as_possible(granularities):
    regions = 6
    reachable = {
        sum(4**g * n for g, n in enumerate(counts))
        for counts in itertools.product(range(regions + 1), repeat=granularities)
        if sum(counts) == regions
    }
    budgets = torch.arange(regions, regions * 4 ** (granularities - 1) + 20)
    wanted = scores(1, granularities - 1, 2, 3).expand(len(budgets), -1, -1, -1)
    counts = counts_for_codes(wanted, budgets)
    assert counts.min() >= 0
    assert (counts.sum(1) == regions).all()
    codes = (counts * 4 ** torch.arange(granularities)).sum(1)
    assert codes.tolist() == [max(r for r in reachable if r <= budget) for budget in budgets.tolist()]


def test_budget_follows_the_scores():
    wanted = torch.tensor([[[[9.0, 8.0, 7.0, 6.0]], [[5.0, 4.0, -9.0, -9.0]]]])
    assert counts_for_codes(wanted, torch.tensor([4 + 12])).tolist() == [[0, 4, 0]]
    assert counts_for_codes(wanted, torch.tensor([4 + 12 + 24])).tolist() == [[0, 2, 2]]


def test_counts_with_as_many_codes_are_those_nearest_to_the_scores():
    """Five regions refined once have as many codes as one refined twice."""
    once, twice = torch.tensor([9.0, 8, 7, 6, 5, 1]), torch.tensor([9.0, 1, 1, 1, 1, 1])
    for first, second, counts in ((once, torch.zeros(6), [1, 5, 0]), (twice, twice - 1, [5, 0, 1])):
        assert counts_for_codes(torch.stack([first, second])[None, :, None], torch.tensor([21])).tolist() == [counts]


def test_arrays_of_shares_are_shares():
    for ratio in (np.array([0.5, 0.25]), torch.tensor([0.5, 0.25]), [np.float32(0.5), 0.25]):
        assert target_shares("ratio", ratio, 3) == (0.5, 0.25)
    assert target_shares("ratio", np.float32(0.5), 2) == (0.5,)


@pytest.mark.parametrize("num_codes", ["many", 10**20, 16.0, True, [[16]], 15], ids=str)
def test_invalid_numbers_of_codes(num_codes):
    with pytest.raises(ValueError, match="num_codes: expected"):
        counts_wanted(1, 16, 2, None, num_codes)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, (0.5, 0.5), float("nan"), "0.5", None, ["half"]], ids=str)
def test_invalid_ratio(ratio):
    with pytest.raises(ValueError, match="ratio: expected"):
        target_shares("ratio", ratio, 2)
