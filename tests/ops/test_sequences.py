"""Bounds of packed sequences, each at the last value that fits and the first that does not."""

import math

import pytest
import torch

from dqcore.ops import sequences as packed

KEYS = torch.arange(5)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def test_only_sequences_with_queries_and_keys_are_seen():
    found = list(packed.sequences(ints(0, 2, 2, 5), ints(0, 0, 3, 7), None))
    assert found == [packed.Sequence(slice(2, 5), slice(3, 7), 0)]
    found = list(packed.sequences(ints(0, 2, 5), ints(0, 3, 7), ints(1, 2)))
    assert [one.prefix for one in found] == [1, 2] and [packed.size_of(one.keys) for one in found] == [3, 4]


@pytest.mark.parametrize(
    ("left", "right", "prefix", "expected"),
    [
        *((-1, -1, 0, [1, 1, 1, 1, 1]), (0, 0, 0, [0, 0, 1, 0, 0]), (1, 0, 0, [0, 1, 1, 0, 0])),
        *((0, 1, 0, [0, 0, 1, 1, 0]), (-1, 0, 0, [1, 1, 1, 0, 0]), (0, -1, 0, [0, 0, 1, 1, 1])),
        *((0, 0, 1, [1, 0, 1, 0, 0]), (0, 0, 2, [1, 1, 1, 0, 0])),
    ],
)
def test_which_keys_a_query_sees(left, right, prefix, expected):
    seen = packed.seen_from(torch.tensor([2]), KEYS, prefix, left, right)
    assert seen.int().tolist() == [expected]
    assert packed.visible_keys(3, 5, prefix, left, right, torch.device("cpu"))[0].int().tolist() == expected


def test_starts_rise_from_0_to_the_rows():
    packed.check_seqlens("cu_seqlens", ints(0, 0, 3, 7), 7, 4)
    packed.check_seqlens("cu_seqlens", ints(0), 7, 0)
    for wrong in (ints(1, 7), ints(0, 8), ints(0, 4, 3)):
        with pytest.raises(ValueError, match=r"cu_seqlens: expected values rising from 0 to at most 7 rows, got \["):
            packed.check_seqlens("cu_seqlens", wrong, 7)
    with pytest.raises(ValueError, match=r"max_seqlen_q: expected at least 4, the longest sequence, got 3"):
        packed.check_seqlens("cu_seqlens_q", ints(0, 0, 3, 7), 7, 3)
    with pytest.raises(ValueError, match="got no value"):
        packed.check_seqlens("cu_seqlens", ints(), 7)
    with pytest.raises(ValueError, match=r"got \[0, 1, 2, 3, \.\.\., 9\]"):
        packed.check_seqlens("cu_seqlens", ints(*range(10)), 7)


def test_prefixes_are_one_for_each_sequence():
    packed.check_prefixes(None, 2)
    packed.check_prefixes(ints(1, 2), 2, q=KEYS)
    for wrong in (ints(1), ints(1, 2, 3)):
        with pytest.raises(ValueError, match="prefix_lengths: expected 2, one for each sequence"):
            packed.check_prefixes(wrong, 2, q=KEYS)


def test_sides_of_a_window():
    assert packed.check_window((-1, -1), causal=False) == (-1, -1)
    assert packed.check_window((3, 4), causal=True) == (3, 0)
    assert packed.check_window((packed.FAR - 1, packed.FAR), causal=False) == (packed.FAR - 1, -1)
    for wrong in ((-2, 0), (0, -2), (1,), (1, 2, 3)):
        with pytest.raises(ValueError, match="window_size: expected"):
            packed.check_window(wrong, causal=False)


def test_scales_are_positive_and_finite():
    assert packed.scale_of(None, 16) == 0.25 and packed.scale_of(2, 16) == 2.0
    for wrong in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="softmax_scale: expected a positive number"):
            packed.scale_of(wrong, 16)
