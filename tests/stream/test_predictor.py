"""How likely each number comes next."""

import math

import numpy as np
import pytest

from dqcore.stream.predictor import Predictor
from dqcore.stream.tables import MOST_FACTOR, TOTAL


def table_of(*shares):
    values = np.array(shares, dtype=np.int64)
    values[0] += TOTAL - values.sum()
    return values


def chance(predictor, left=-1, upper=-1):
    weights = predictor.weights(left, upper)
    assert weights.sum() == TOTAL - len(weights) and weights.min() >= 0
    assert (weights == np.floor(weights)).all()
    return (weights + 1) / TOTAL


def test_at_first_the_tables_hold_then_the_photo():
    predictor = Predictor(table_of(0, TOTAL // 4, TOTAL // 4), np.full((1, 3), 256))
    assert np.allclose(chance(predictor), [0.5, 0.25, 0.25], atol=1e-6)
    for _ in range(256):
        predictor.learn(2)
    expected = 15 / 16 * np.array([0.25, 0.125, 0.625]) + np.array([0.5, 0.25, 0.25]) / 16
    assert np.allclose(chance(predictor), expected, atol=1e-6)


def test_neighbours_multiply():
    factors = np.array([[256, 512, 256], [256, 256, 128]])
    predictor = Predictor(table_of(0, TOTAL // 4, TOTAL // 4), factors)
    likely = np.array([0.5, 0.25 * 2, 0.25 * 0.5])
    expected = 15 / 16 * likely / likely.sum() + np.array([0.5, 0.25, 0.25]) / 16
    assert np.allclose(chance(predictor, 0, 1), expected, atol=1e-6)
    assert np.allclose(chance(predictor, 1, 0), expected, atol=1e-6)


@pytest.mark.parametrize("size", [2, 16384])
def test_no_product_overflows(size):
    """The most extreme tables, for longer than a photo lasts."""
    predictor = Predictor(table_of(0, *[1] * (size - 1)), np.full((1, size), MOST_FACTOR))
    for _ in range(70):
        for _ in range(1000):
            predictor.learn(0)
        assert chance(predictor, 0, 0)[0] > 0.99
    alone = Predictor(table_of(0, *[1] * (size - 1)), np.array([[1] + [MOST_FACTOR] * (size - 1)]))
    chance(alone, 0, 0)


def test_a_number_takes_some_of_a_bit_at_least():
    predictor = Predictor(table_of(0, *[TOTAL // 4] * 3), np.array([[1, MOST_FACTOR, 1, 1]]))
    for _ in range(5000):
        predictor.learn(1)
    least = -math.log2(chance(predictor, 0, 0).max())
    assert 0.06 < predictor.least_bits <= least < 0.08
