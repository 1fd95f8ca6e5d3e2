"""The range coder, against one written down here in whole numbers: what any machine must read."""

import bisect
import itertools

import numpy as np
import pytest

from dqcore.stream.coder import Reader, Writer
from dqcore.stream.predictor import Predictor
from dqcore.stream.tables import PRECISION, TOTAL


def read_by_definition(data, rows):
    """The numbers, in integer arithmetic alone: ``rows[i]`` are the frequencies of number i; None if there are none."""
    words = iter(np.frombuffer(data + bytes(-len(data) % 4 + 4 * len(rows) + 8), dtype=">u4").tolist())
    low, width, point, found = 0, (1 << 64) - 1, next(words) << 32 | next(words), []
    for row in rows:
        ends = [0, *itertools.accumulate(row)]
        unit = width >> PRECISION
        number = bisect.bisect_right(ends, (point - low) % (1 << 64) // unit) - 1
        if number >= len(row):
            return None  # no writer writes this
        low, width = (low + unit * ends[number]) % (1 << 64), unit * row[number]
        if width < 1 << 32:
            low, width, point = (low << 32) % (1 << 64), width << 32, (point << 32) % (1 << 64) | next(words)
        found.append(number)
    return found


def predictor(tables):
    return Predictor(tables.codes[1].numpy(), tables.code_factors[1].numpy())


@pytest.mark.parametrize("seed", range(30))
def test_the_bytes_are_those_of_the_definition(tables_of, seed):
    tables, draw = tables_of(30 + seed, 2, seed), np.random.default_rng(seed)
    share = tables.codes[1].numpy() / TOTAL
    numbers = draw.choice(len(share), 60, p=share).tolist()
    beside = draw.integers(-1, int(tables.classes.max()) + 1, (60, 2)).tolist()
    writer, likely, rows = Writer(), predictor(tables), []
    for number, (left, upper) in zip(numbers, beside, strict=True):
        rows.append([int(weight) + 1 for weight in likely.weights(left, upper)])
        writer.code(likely, left, upper, number)
    data = writer.finish()
    assert all(sum(row) == TOTAL and min(row) >= 1 for row in rows)
    assert read_by_definition(data, rows) == numbers
    reader, likely = Reader(data, "stream"), predictor(tables)
    assert [reader.code(likely, left, upper) for left, upper in beside] == numbers
    for last in range(256):  # nothing shorter has these numbers
        assert read_by_definition(data[:-2] + bytes([last]), rows) != numbers


def test_a_carry_passes_through_many_bytes():
    """Rare numbers at the upper end give bytes 255, which the last byte must not overflow."""
    table, factors = np.array([TOTAL - 1, 1]), np.full((1, 2), 256)
    for count in range(1, 40):
        writer, likely = Writer(), Predictor(table, factors)
        numbers = [1] * count + [0] * (count % 5)
        for number in numbers:
            writer.code(likely, -1, -1, number)
        reader, likely = Reader(writer.finish(), "stream"), Predictor(table, factors)
        assert [reader.code(likely, -1, -1) for _ in numbers] == numbers


def test_nothing_takes_no_byte():
    assert Writer().finish() == b""
    writer, only = Writer(), Predictor(np.array([TOTAL]), np.array([[256]]))
    assert [writer.code(only, -1, -1, 0) for _ in range(5)] == [0] * 5
    assert writer.finish() == b""
    assert [Reader(b"", "stream").code(only, -1, -1) for _ in range(5)] == [0] * 5
