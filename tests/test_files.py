import json
import os

import pytest

from dqcore.files import write_atomically, write_json


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "state.bin"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["state.bin"]


def test_data_is_flushed_before_the_rename(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), replace(*paths)))
    write_json(tmp_path / "a.json", {"x": [1, 2]})
    assert order == ["fsync", "rename", "fsync"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2]}
