import json
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


def test_every_byte_of_a_file_counts(tmp_path):
    path, hashes = tmp_path / "x", set()
    body = bytearray(300_000)
    for place in (0, 150_000, 299_999):
        body[place] += 1
        path.write_bytes(body)
        hashes.add(hash_file(path))
    path.write_bytes(body + b"0")
    assert len({*hashes, hash_file(path)}) == 4


def test_records_of_earlier_versions_are_of_both_ends(tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(bytes(100_000))
    large.write_bytes(bytes(300_000))
    # computed by the version that wrote them
    seen = ["312c4e49a35cc695a9cb", "a16d35d4553c145e65dc"]
    (tmp_path / "seen_images.json").write_text(json.dumps({"training": seen}))
    assert provenance(tmp_path, [small, large]) == ["trained on"] * 2
    assert hash_file(small) in seen and hash_file(large) not in seen


def test_a_model_beside_a_run_is_not_the_runs(tmp_path):
    """Only its own folder ``model`` is."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "other").mkdir()
    photos = sample_photos("train")[:1]
    record_images(tmp_path / "run", photos)
    (tmp_path / "link").symlink_to(tmp_path / "run" / "model")
    found = [provenance(tmp_path / name, photos)[0] for name in ("run/model", "link", "run/other")]
    assert found == ["trained on", "trained on", "unknown"]


def test_a_record_that_would_take_too_long_is_none(tmp_path, monkeypatch):
    record_images(tmp_path, sample_photos("train")[:1])
    monkeypatch.setattr(module, "LIMIT", 1)
    record_images(tmp_path, sample_photos("train")[:2])
    assert provenance(tmp_path, sample_photos("train")[:1]) == ["unknown"]
    record_images(tmp_path, sample_photos("train")[:1])
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    record_images(tmp_path, sample_photos("train")[:1])
    assert not (tmp_path / "seen_images.json").exists()


def test_a_damaged_record(tmp_path):
    (tmp_path / "seen_images.json").write_text("[]")
    with pytest.raises(ValueError, match="not a record of a run's images"):
        provenance(tmp_path, [])


def test_in_words():
    assert say_provenance(["held out"] * 3) == "3 held out"
    assert say_provenance(["held out", "trained on", "held out"]) == "1 trained on, 2 held out"
    assert say_provenance(["unknown"]) == "1 unknown, the run kept no record of its files"
