"""Intervals against values from tables of Student's t, and curves averaged where all have a point."""

import math

import pytest

from dqcore.experiments.statistics import T_95, difference, interval, mean_curve


def test_interval_of_three_values():
    found = interval([1.0, 2.0, 3.0])  # standard deviation 1, t(2) = 4.302653
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-3)
    assert (found.low, found.high) == (pytest.approx(-0.4841, abs=1e-3), pytest.approx(4.4841, abs=1e-3))


def test_interval_of_ten_values():
    # From a textbook: n = 10, mean 5.5, s = 3.02765, t(9) = 2.262157, half = 2.16585
    assert interval([float(value) for value in range(1, 11)]).half == pytest.approx(2.16585, rel=1e-3)


def test_quantiles_fall_and_the_last_is_used_beyond():
    assert list(T_95) == sorted(T_95, reverse=True) and len(T_95) == 30
    many = interval([0.0, 1.0] * 50)
    assert many.half == pytest.approx(T_95[-1] * math.sqrt(100 * 0.25 / 99) / 10)


def test_fewer_than_two_values_have_no_interval():
    assert interval([]).count == 0 and interval([]).text() == "-"
    assert interval([4.0]).half == math.inf and interval([4.0]).text(1, "dB") == "4.0 dB"


def test_differences_are_taken_seed_by_seed():
    # The seeds differ by far more than the arms do: only pairs show it.
    a, b = {0: 1.1, 1: 5.1, 2: 9.1, 7: 0.0}, {0: 1.0, 1: 5.0, 2: 9.0, 8: 0.0}
    found = difference(a, b)
    assert found.count == 3 and found.mean == pytest.approx(0.1) and found.half < 1e-9
    assert found.text(2, "dB", sign=True) == "+0.10 ± 0.00 dB"


def test_curves_are_averaged_where_all_have_a_point():
    assert mean_curve([[[1, 2.0], [2, 4.0], [3, 9.0]], [[1, 4.0], [3, 1.0]]]) == [(1, 3.0), (3, 5.0)]
    assert mean_curve([]) == []
