"""Sectors: counted by hand for small layouts, and the stored table."""

import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("triton")
import compile_sectors
import sector_cases
import sectors

#: A tile of 32 channels and 64 cells: a warp has 32 cells of one channel.
PLANES = sectors.BlockedLayout((1, 1), (1, 32), (2, 2), 1)


def addresses(rows, columns):
    """Of float32: rows may lie anywhere."""
    return np.add.outer(np.asarray(rows), 4 * np.asarray(columns)).astype(np.uint64)


def touched(layout, where, mask=None):
    count, _ = sectors.count(layout, where, np.ones(where.shape, bool) if mask is None else mask, 4)
    return count


def test_neighbouring_cells_share_sectors():
    count = touched(PLANES, addresses(4096 * np.arange(32), np.arange(64)))
    assert count == (64, 64 * 4, 32 * 64 * 4)


def test_runs_of_two_cells_waste_three_quarters():
    """What listing vectors region by region did: two cells of a row, then two of the next."""
    scattered = 32 * (np.arange(64) // 2) + np.arange(64) % 2
    count = touched(PLANES, addresses(4096 * np.arange(32), scattered))
    assert count.sectors * sectors.SECTOR == 4 * count.asked


def test_lanes_that_are_masked_touch_nothing():
    where = addresses(4096 * np.arange(32), np.arange(64))
    mask = np.zeros(where.shape, bool)
    mask[:, 32:] = True
    assert touched(PLANES, where, mask) == (32, 32 * 4, 32 * 32 * 4)


def test_a_thread_loads_16_bytes_at_once():
    rows = sectors.BlockedLayout((1, 4), (2, 16), (4, 1), 1)
    count = touched(rows, addresses(4096 * np.arange(32), np.arange(64)))
    assert count.accesses == 16
    assert count.sectors == 16 * 16


def test_layouts_are_read_with_the_lines_they_belong_to():
    text = """
#blocked = #ttg.blocked<{sizePerThread = [1, 4], threadsPerWarp = [2, 16], warpsPerCTA = [4, 1], order = [1, 0]}>
#loc1 = loc("a/kernels/one.py":3:5)
#loc2 = loc("a/kernels/two.py":7:1)
#loc3 = loc(callsite(#loc1 at #loc2))
#loc4 = loc("name"(#loc2))
    %1 = tt.load %0, %m, %c : tensor<32x64x!tt.ptr<f32>, #blocked> loc(#loc3)
    tt.store %0, %1 : tensor<32x!tt.ptr<f32>, #ttg.slice<{dim = 1, parent = #blocked}>> loc(#loc4)
"""
    assert sectors.layouts(text) == {
        ((("one.py", 3), ("two.py", 7)), (32, 64)): sectors.BlockedLayout((1, 4), (2, 16), (4, 1), 1),
        ((("two.py", 7),), (32,)): sectors.BlockedLayout((1,), (2,), (4,), None),
    }


def test_a_call_over_several_lines_has_one_place():
    """Triton 3.6 names another line of it than 3.8 and Python do; so no access was found under 3.6."""
    path = pathlib.Path(compile_sectors.__file__).parents[1] / "kernels" / "vectors.py"
    lines = path.read_text().splitlines()
    begin, end = (number for number, line in enumerate(lines, 1) if line in ("def starts(", "):  # fmt: skip"))
    assert sectors.first_line("vectors.py", begin + 1) == sectors.first_line("vectors.py", end) < end
    inner = next(number for number, line in enumerate(lines, 1) if "line = cell // width" in line)
    assert sectors.first_line("vectors.py", inner) == inner
    assert sectors.first_line("nothing.py", 7) == 7


def test_what_drifts_is_told():
    stored = {"a": {"moved": 100, "apart": 120, "floor": 90, "kernels": {"k": {"moved": 100, "apart": 120}}}}
    found = json.loads(json.dumps(stored))
    assert compile_sectors.drifted(found, stored) == compile_sectors.failures(found) == []
    found["a"]["kernels"]["k"]["moved"] = 106
    found["a"]["floor"] = 59
    assert compile_sectors.drifted(found, stored) == ["a: k, moved is 106 bytes, stored are 100"]
    assert compile_sectors.failures(found) == [
        "a: moved is 1.69 times the floor, at most 1.3",
        "a: apart is 2.03 times the floor, at most 2.0",
    ]
    assert compile_sectors.drifted({}, stored) == ["a: only on one side"]


def test_stored_table_moves_little_more_than_the_floor():
    stored = json.loads(compile_sectors.STORED.read_text())
    assert compile_sectors.failures(stored["cases"]) == []
    assert stored["cases"].keys() == sector_cases.cases("cpu").keys()
    assert stored["triton"] in stored["checked"]


@pytest.mark.slow
def test_nothing_moved():
    """Compiles and interprets all of it: a minute and a half."""
    assert compile_sectors.main([]) == 0
