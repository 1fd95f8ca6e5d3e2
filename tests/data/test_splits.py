from pathlib import Path

import pytest

from dqcore.data.listing import choose, files_for, spread
from dqcore.data.splits import LISTS, least_held_out, listed_split, training_split


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


@pytest.mark.parametrize(("most", "number"), [(None, 9), (12, 9), (9, 9), (4, 4), (0, 0)])
def test_a_random_choice_keeps_the_order(most, number):
    paths = [Path(str(index)) for index in range(9)]
    found = choose(paths, most, 3)
    assert len(found) == number and found == sorted(set(found)) == choose(paths, most, 3)
    assert number in (0, 9) or found != choose(paths, most, 4)


def test_one_list_alone_splits_nothing(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    training, validation = (tmp_path / name for name in LISTS[0])
    training.write_text("0.png\n1.png\n")
    assert listed_split(tmp_path, paths) is None
    validation.write_text("3.png\n")
    assert listed_split(tmp_path, paths).validation == paths[3:]


def test_lists_name_the_keys_of_a_database_in_one_file(tmp_path):
    paths = [tmp_path / f"faces.lmdb::{index}" for index in range(5)]
    (tmp_path / LISTS[0][0]).write_text("0.png\n1.png\n2.png\n")
    (tmp_path / LISTS[0][1]).write_text("3.png\n4.png\n")
    assert listed_split(tmp_path / "faces.lmdb", paths).validation == paths[3:]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("a.jpg", "a.png"),
        ("cat/a.b.JPEG", "cat/a.b.png"),
        ("a.dqc", "a.png"),
        ("church_lmdb::a.b%2Fc", "church_lmdb::a.b%2Fc.png"),
        ("church.lmdb::0a1b", "church.lmdb::0a1b.png"),
        ("x.tar::a.b/c.png", "x.tar::a.b/c.png"),
        ("a.", "a..png"),
    ],
)
def test_a_file_keeps_all_of_a_name_but_the_ending_of_an_image(name, first):
    files = files_for(name, ".png")
    assert next(files) == first
    assert next(files) == f"{name}.png" and next(files) == f"{name}-2.png"


def test_no_two_keys_of_a_database_become_one_file():
    keys = ["a.b%2Fc", "a.b%2Fd", "a.b", "a", "a.png", "a.PNG"]
    names = [f"{database}::{key}" for database in ("x.lmdb", "x_lmdb") for key in keys]
    plain = {next(files_for(name, ".dqc")) for name in names if not name.lower().endswith("g")}
    assert len(plain) == 8
