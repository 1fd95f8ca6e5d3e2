"""Intervals against values from tables of Student's t."""

import math

import pytest

from dqcore.metrics.intervals import T_95, interval


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
