from pathlib import Path

import pytest

from dqcore.data.listing import spread
from dqcore.data.splits import least_held_out, training_split


def test_a_small_folder_holds_out_a_tenth_and_at_most_four():
    assert [least_held_out(count) for count in (1, 3, 19, 20, 39, 60, 5000)] == [1, 1, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("count", "share", "at_least", "held"),
    [
        (60, 0.02, None, 4),
        (60, 0.1, None, 6),
        (400, 0.02, None, 8),
        (60, 0.02, 1, 1),
        (60, 0, None, 0),
        (3, 0.02, None, 1),
    ],
)
def test_how_many_are_held_out(tmp_path, count, share, at_least, held):
    paths = [tmp_path / f"{index}.png" for index in range(count)]
    split = training_split(tmp_path, paths, share, at_least)
    assert len(split.validation) == held and len(split.training) == count - held
    again = training_split(tmp_path, paths[::-1], share, at_least)
    assert set(again.validation) == set(split.validation)


@pytest.mark.parametrize(("count", "most"), [(10, 4), (3, 4), (4, 4), (1000, 7)])
def test_some_of_many_are_spread_over_all(count, most):
    paths = [Path(str(number)) for number in range(count)]
    found = [int(str(path)) for path in spread(paths, most)]
    assert len(found) == min(count, most) and found == sorted(set(found))
    steps = [after - before for before, after in zip(found, [*found[1:], count], strict=True)]
    assert found[0] == 0 and max(steps) - min(steps) <= 1
