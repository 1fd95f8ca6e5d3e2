"""Differences are taken of pairs, and curves are averaged where all have a point."""

import pytest

from dqcore.experiments.statistics import difference, mean_curve


def test_differences_are_taken_seed_by_seed():
    # The seeds differ by far more than the arms do: only pairs show it.
    a, b = {0: 1.1, 1: 5.1, 2: 9.1, 7: 0.0}, {0: 1.0, 1: 5.0, 2: 9.0, 8: 0.0}
    found = difference(a, b)
    assert found.count == 3 and found.mean == pytest.approx(0.1) and found.half < 1e-9
    assert found.text(2, "dB", sign=True) == "+0.10 ± 0.00 dB"


def test_curves_are_averaged_where_all_have_a_point():
    assert mean_curve([[[1, 2.0], [2, 4.0], [3, 9.0]], [[1, 4.0], [3, 1.0]]]) == [(1, 3.0), (3, 5.0)]
    assert mean_curve([]) == []
