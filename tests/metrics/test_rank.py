import math

import pytest
import torch
from scipy.stats import spearmanr

from dqcore.metrics import spearman


@pytest.mark.parametrize("values", [2, 3, 7, 10**6])
def test_is_scipys_with_ties(values):
    x, y = torch.randint(values, (400,)), torch.randn(400)
    y = y + 0.5 * x / values
    assert spearman(x, y) == pytest.approx(spearmanr(x.numpy(), y.numpy()).statistic, abs=1e-12)


def test_does_not_depend_on_scale():
    x = torch.randn(5, 4)
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)


def test_a_constant_has_no_rank():
    assert math.isnan(spearman(torch.zeros(4), torch.randn(4)))
    hole = torch.tensor([1.0, 2.0, torch.nan, 3.0])
    assert math.isnan(spearman(torch.randn(4), hole)) and math.isnan(spearman(hole, torch.randn(4)))


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="as many values as x"):
        spearman(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="at least 2, got 1 and 1"):
        spearman(torch.zeros(1), torch.zeros(1))
    assert spearman(torch.tensor([1, 2]), torch.tensor([4, 3])) == -1
