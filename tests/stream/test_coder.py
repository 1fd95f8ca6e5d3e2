"""The range coder, against one written down here in whole numbers: what any machine must read."""

import bisect
import itertools

import numpy as np
import pytest

from dqcore.stream.coder import Reader, Writer, table_model
from dqcore.stream.tables import PRECISION


def read_by_definition(data, rows, numbers):
    """The numbers, in integer arithmetic alone: ``rows[i]`` are the frequencies of number i."""
    words = iter(np.frombuffer(data + bytes(-len(data) % 4 + 4 * len(numbers) + 8), dtype=">u4").tolist())
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


@pytest.mark.parametrize("seed", range(40))
def test_the_bytes_are_those_of_the_definition(tables_of, seed):
    tables = tables_of(30 + seed, 2, seed).codes.numpy()
    draw = np.random.default_rng(seed)
    which = draw.integers(0, 2, 60)
    numbers = [int(draw.choice(len(tables[w]), p=tables[w] / tables[w].sum())) for w in which]
    writer, models = Writer(), [table_model(row) for row in tables]
    for number, w in zip(numbers, which, strict=True):
        writer.write(np.array([number]), models[w])
    data = writer.finish()
    assert read_by_definition(data, [tables[w].tolist() for w in which], numbers) == numbers
    reader = Reader(data, "stream")
    assert [int(reader.read(1, models[w])[0]) for w in which] == numbers
    if data:  # nothing shorter has these numbers
        for last in range(256):
            shorter = data[:-2] + bytes([last])
            assert read_by_definition(shorter, [tables[w].tolist() for w in which], numbers) != numbers


def test_a_carry_passes_through_many_bytes():
    """Rare numbers at the upper end give bytes 255, which the last byte must not overflow."""
    row = np.array([(1 << PRECISION) - 1, 1])
    for count in range(1, 40):
        writer, model = Writer(), table_model(row)
        numbers = np.array([1] * count + [0] * (count % 5))
        writer.write(numbers, model)
        data = writer.finish()
        assert Reader(data, "stream").read(len(numbers), model).tolist() == numbers.tolist()


def test_nothing_takes_no_byte():
    assert Writer().finish() == b""
    writer = Writer()
    writer.write(np.zeros(5, dtype=np.int32), table_model(np.array([1 << PRECISION])))
    assert writer.finish() == b""
    assert Reader(b"", "stream").read(5, None).tolist() == [0] * 5
