"""Tables of frequencies: whole numbers in proportion to counts, the same after saving."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dqcore.errors import InputError
from dqcore.stream import TABLES, CodeTables, files, load_code_tables, save_code_tables

TOTAL = 1 << 24


def test_frequencies_follow_the_counts():
    counts = torch.tensor([[0, 1, 10, 1000], [5, 5, 5, 5]])
    tables = CodeTables.fit(counts, torch.tensor([3, 1]))
    assert tables.codes.sum(1).tolist() == [TOTAL, TOTAL] and int(tables.grains.sum()) == TOTAL
    assert tables.codes[1].tolist() == [TOTAL // 4] * 4
    wanted = (counts[0] + 0.5) / (1011 + 2) * TOTAL
    assert torch.allclose(tables.codes[0].double(), wanted.double(), atol=8)
    assert torch.allclose(tables.grains.double(), torch.tensor([3.5, 1.5]).double() / 5 * TOTAL, atol=4)


def test_huge_counts_and_codes_that_never_occur():
    counts = torch.zeros(1, 16384, dtype=torch.int64)
    counts[0, 7] = 1 << 50
    tables = CodeTables.fit(counts, torch.tensor([1 << 50]))
    assert int(tables.codes.min()) == 1 and int(tables.codes[0, 7]) == TOTAL - 16383
    assert tables.grains.tolist() == [TOTAL]


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("grains", torch.tensor([1.0, 1.0]), "grains: expected an int64 tensor"),
        ("grains", torch.tensor([TOTAL, 1]), "grains: expected frequencies"),
        ("codes", torch.tensor([[TOTAL, 0, 0, 0]] * 2), "codes: expected frequencies"),
        ("codes", torch.tensor([[TOTAL // 4] * 4]), "codes: expected shape"),
        ("classes", torch.tensor([0, 0, 0, 1]), r"classes: expected values in \[0, 0\]"),
        ("grain_factors", torch.full((2, 2), 0), r"grain_factors: expected values in \[1, 65535\]"),
        ("code_factors", torch.full((2, 1, 4), 1 << 16), "code_factors: expected values"),
        ("code_factors", torch.full((2, 4), 256), "code_factors: expected shape"),
    ],
)
def test_other_tables_are_refused(name, value, match):
    with pytest.raises(InputError, match=match):
        dataclasses.replace(CodeTables.uniform(4, 2), **{name: value})


def test_counts_must_be_whole():
    with pytest.raises(InputError, match="code_counts"):
        CodeTables.fit(torch.tensor([[0.5]]), torch.tensor([1]))
    with pytest.raises(InputError, match="grain_counts"):
        CodeTables.fit(torch.tensor([[1]]), torch.tensor([-1]))


def test_saved_tables_are_the_same(tables_of, tmp_path):
    tables = tables_of(300, 3)
    save_code_tables(tables, str(tmp_path))  # a folder as users name it, too
    assert load_code_tables(str(tmp_path), tables.codebook_size, tables.num_granularities)[0] == tables
    first, last = load_code_tables(tmp_path, 300, 3)
    assert first == tables and first.identity == tables.identity and last == CodeTables.uniform(300, 3)
    assert hash(first) == hash(tables) and tables != tables_of(300, 3, seed=1)


def test_the_identity_never_changes():
    """Streams on people's disks name their tables by it."""
    assert CodeTables.uniform(256, 2).identity.startswith("b55a30c32809d699")


def test_tables_that_streams_need_are_kept(tables_of, tmp_path):
    old, new = tables_of(seed=0), tables_of(seed=1)
    for tables in (old, old, new, new):
        save_code_tables(tables, tmp_path)
    assert load_code_tables(tmp_path, 50, 2) == [new, old, CodeTables.uniform(50, 2)]
    assert len(list(tmp_path.iterdir())) == 2


def test_tables_that_are_written_at_once_are_kept(tables_of, tmp_path, monkeypatch):
    save_code_tables(tables_of(seed=0), tmp_path)
    monkeypatch.setattr("dqcore.files.PATIENCE", 60)
    read = files._read

    def slow(path):
        tables = read(path)
        time.sleep(0.1)
        return tables

    monkeypatch.setattr(files, "_read", slow)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda seed: save_code_tables(tables_of(seed=seed), tmp_path), (1, 2, 3)))
    found = load_code_tables(tmp_path, 50, 2)
    assert all(tables_of(seed=seed) in found for seed in range(4))


def test_a_model_without_tables_has_uniform_ones(tmp_path):
    assert load_code_tables(tmp_path, 50, 2) == [CodeTables.uniform(50, 2)]


def test_tables_of_another_model_or_damaged_ones(tables_of, tmp_path):
    save_code_tables(tables_of(50), tmp_path)
    with pytest.raises(InputError, match="expected tables of 60 codes"):
        load_code_tables(tmp_path, 60, 2)
    save_code_tables(tables_of(60), tmp_path)  # the model's codes are others now, and no stream of the old ones is read
    assert load_code_tables(tmp_path, 60, 2) == [tables_of(60), CodeTables.uniform(60, 2)]
    (tmp_path / TABLES).write_bytes(b"nothing")
    with pytest.raises(InputError, match="not the tables of a model"):
        load_code_tables(tmp_path, 50, 2)
