import errno
import json
import os
import re
import resource
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dqcore import files
from dqcore.files import checkout, sole_owner, write_atomically, write_json


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


def test_one_owner_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    out = tmp_path / "out"
    (tmp_path / "file").touch()

    def enter(folder):
        with sole_owner(folder, "writing codes"):
            return folder.is_dir()

    with ThreadPoolExecutor() as other:
        with sole_owner(out):
            assert enter(out)  # again, by the same one
            with pytest.raises(ValueError, match="another process is writing codes in"):
                other.submit(enter, out).result()
        assert not out.exists()  # nothing came into it
        assert other.submit(enter, out).result()
    with pytest.raises(ValueError, match="is a file"):
        enter(tmp_path / "file")


def test_forked_processes_hold_no_lock(tmp_path):
    with sole_owner(tmp_path):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
    try:
        with sole_owner(tmp_path):
            pass
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def _begun(path):
    """The number of a process that is writing a file, and never ends."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.read(reading, 1)
        return child
    write_atomically(path, lambda file: (os.write(writing, b"x"), time.sleep(60)))
    os._exit(0)


def _kill(process):
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def _temporaries(folder):
    return sorted(path for path in folder.rglob("*") if path.name.endswith(".dqcore.tmp"))


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    (tmp_path / "model").mkdir()
    dead = _begun(tmp_path / "model" / "b.bin")
    alive = _begun(tmp_path / "a.json")
    _kill(dead)
    try:
        others = [tmp_path / f".thesis.docx.{dead}.tmp", tmp_path / f".b.{dead}-0.tmp", tmp_path / "notes.tmp"]
        for path in others:  # of other programs, whose names only look alike
            path.touch()
        assert len(_temporaries(tmp_path)) == 2
        with sole_owner(tmp_path):
            assert [path.parent for path in _temporaries(tmp_path)] == [tmp_path]
            assert all(path.exists() for path in others)
    finally:
        _kill(alive)
    files.remove_leftovers(tmp_path, "another")
    assert len(_temporaries(tmp_path)) == 1
    files.remove_leftovers(tmp_path, "a.json")
    assert not _temporaries(tmp_path)


def test_what_another_machine_or_container_writes_stays(tmp_path, monkeypatch):
    """Its processes cannot be seen here: its lock tells, and where locks do not reach, the time."""
    path = tmp_path / "a.json"
    long_ago = (0, 0)

    def write(file):
        (temporary,) = _temporaries(tmp_path)
        file.write(b"x")
        file.flush()
        os.utime(temporary, long_ago)
        with monkeypatch.context() as here:
            here.setattr(files, "_machine", lambda: "0" * 8)
            files.remove_leftovers(tmp_path)
        assert temporary.exists()

    write_atomically(path, write)
    assert path.read_bytes() == b"x" and not _temporaries(tmp_path)
    left = tmp_path / f".{'0' * 16}.{'1' * 8}.{os.getpid()}-0.dqcore.tmp"
    left.touch()
    files.remove_leftovers(tmp_path)
    assert left.exists()
    os.utime(left, long_ago)
    files.remove_leftovers(tmp_path)
    assert not left.exists()


def test_a_name_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("\u5199" * 83 + ".dqc")
    write_atomically(path, lambda file: file.write(b"x"))
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_is_one_error_that_names_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written.*big\.bin") as error:
            write_atomically(tmp_path / "big.bin", lambda file: file.write(bytes(5000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG and list(tmp_path.iterdir()) == []


def test_the_commit_of_a_source_tree(tmp_path, monkeypatch):
    module = tmp_path / "dqcore" / "files" / "checkout.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(checkout, "__file__", str(module))
    assert checkout.checked_out_commit() is None

    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    module.write_text("")
    git("init", "-q")
    assert checkout.checked_out_commit() is None  # no commit yet
    git("add", ".")
    git("commit", "-qm", "first")
    clean = checkout.checked_out_commit()
    assert re.fullmatch("[0-9a-f]{12}", clean)
    module.write_text("changed")
    assert checkout.checked_out_commit() == f"{clean}+"
