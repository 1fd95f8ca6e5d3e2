import shutil

import pytest

from dqcore.data import provenance as module
from dqcore.data.photos import sample_photos
from dqcore.data.provenance import hash_file, provenance, record_images, say_provenance


def test_files_are_known_by_their_contents(tmp_path):
    seen, other = sample_photos("train")[:2]
    record_images(tmp_path / "run", [seen, tmp_path / "gone.jpg"])
    copy = shutil.copy(seen, tmp_path / "another-name.jpg")
    (tmp_path / "run" / "model").mkdir()
    for checkpoint in (tmp_path / "run", tmp_path / "run" / "model"):
        assert provenance(checkpoint, [copy, other]) == ["trained on", "held out"]
    assert provenance(tmp_path, [seen]) == ["unknown"]


def test_large_files_differ_at_either_end(tmp_path):
    path, hashes = tmp_path / "x", set()
    body = bytearray(300_000)
    for place in (0, 70_000, 299_999):
        body[place] += 1
        path.write_bytes(body)
        hashes.add(hash_file(path))
    path.write_bytes(body + b"0")
    assert len({*hashes, hash_file(path)}) == 3  # the middle is not read, the length is


def test_a_record_that_would_take_too_long_is_none(tmp_path, monkeypatch):
    record_images(tmp_path, sample_photos("train")[:1])
    monkeypatch.setattr(module, "LIMIT", 1)
    record_images(tmp_path, sample_photos("train")[:2])
    assert provenance(tmp_path, sample_photos("train")[:1]) == ["unknown"]


def test_a_damaged_record(tmp_path):
    (tmp_path / "seen_images.json").write_text("[]")
    with pytest.raises(ValueError, match="not a record of a run's images"):
        provenance(tmp_path, [])


def test_in_words():
    assert say_provenance(["held out"] * 3) == "3 held out"
    assert say_provenance(["held out", "trained on", "held out"]) == "1 trained on, 2 held out"
    assert say_provenance(["unknown"]) == "1 unknown, the run kept no record of its files"
