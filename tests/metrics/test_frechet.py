"""The Frechet distance against its definition with matrices."""

import pytest
import torch

from dqcore.errors import InputError
from dqcore.metrics import frechet_distance


def by_definition(x, y):
    x, y = x.double(), y.double()
    a, b = torch.cov(x.T), torch.cov(y.T)
    root = torch.linalg.eigvals(a @ b).real.clamp_min(0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * root)


@pytest.mark.parametrize(("n", "m"), [(50, 80), (4, 3)])
def test_it_is_the_definition(n, m):
    x, y = torch.randn(n, 6), 2 * torch.randn(m, 6) + 1
    assert frechet_distance(x, y) == pytest.approx(by_definition(x, y), rel=1e-6)


def test_a_set_is_at_no_distance_from_itself_and_a_shift_is_its_square():
    x = torch.randn(20, 5)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(20, rel=1e-5)


def test_sets_that_do_not_fit():
    for shape in ((5, 4), (1, 3), (5, 3, 2), (3,)):
        with pytest.raises(InputError, match="y: expected"):
            frechet_distance(torch.randn(5, 3), torch.randn(shape))
    with pytest.raises(InputError, match="x: expected finite features"):
        frechet_distance(torch.full((5, 3), torch.nan), torch.randn(5, 3))
