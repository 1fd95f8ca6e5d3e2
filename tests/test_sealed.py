"""JSON objects with a checksum: every changed value is noticed, and files without one are read as they are."""

import json

import pytest

from dqcore.errors import InputError
from dqcore.files.sealed import read_sealed, write_sealed

VALUE = {"name": "ä", "sizes": [1, 2.5, None], "more": {"a": True, "b": 1e-05}}


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "value.json"
    write_sealed(path, VALUE)
    assert read_sealed(path) == VALUE
    write_sealed(path, json.loads(path.read_text()))  # a checksum of before is none of the values
    assert read_sealed(path) == VALUE
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_sealed(path) == VALUE
    path.write_text(json.dumps(VALUE))
    assert read_sealed(path) == VALUE
    path.write_text("[1]")
    assert read_sealed(path) == [1]


def test_every_damaged_bit_is_noticed(tmp_path):
    path = tmp_path / "value.json"
    write_sealed(path, VALUE)
    data = path.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:
            found = read_sealed(path)
        except ValueError:
            continue
        assert found == VALUE, bytes(damaged)


def test_what_is_wrong_is_named(tmp_path):
    path = tmp_path / "value.json"
    write_sealed(path, VALUE)
    path.write_text(path.read_text().replace("2.5", "2.75"))
    with pytest.raises(InputError, match=r"value\.json: damaged, or changed by hand: its checksum is wrong"):
        read_sealed(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError):
        read_sealed(path)
