"""Pipes, folders and names in places where files are expected: nothing waits for them, and nothing else suffers."""

import os
import shutil

import pytest


@pytest.fixture
def stream(run, checkpoint, pictures, tmp_path):
    path = tmp_path / "streams" / "a.dqc"
    assert run("encode", pictures / "0.png", "--checkpoint", checkpoint, "--out", path)[0] == 0
    return path


def test_a_pipe_among_streams_is_not_waited_for(run, checkpoint, stream, tmp_path):
    os.mkfifo(stream.with_name("b.dqc"))
    code, out, err = run("decode", stream.parent, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert code == 2 and "1 picture decoded, 1 not" in out and "b.dqc: cannot be read (it is no regular file)" in err
    assert (tmp_path / "out" / "a.png").is_file()


def test_a_folder_may_be_called_like_a_stream(run, checkpoint, stream, tmp_path):
    (stream.parent / "more.dqc").mkdir()
    shutil.move(stream, stream.parent / "more.dqc" / "a.dqc")
    code, out, _ = run("decode", stream.parent, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert code == 0 and "1 picture decoded, 0 not" in out
    assert (tmp_path / "out" / "more" / "a.png").is_file() or (tmp_path / "out" / "more.dqc" / "a.png").is_file()


def test_a_pipe_is_no_picture_to_replace(fails, checkpoint, pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / "0.png")
    line = fails("reconstruct", pictures / "0.png", "--checkpoint", checkpoint, "--out", out)
    assert "0.png is there already and was not made by dqcore" in line


@pytest.mark.parametrize("folder", ["0.dqc", "0.png.dqc/0.dqc"])
def test_no_stream_stands_where_a_folder_of_photos_goes(run, checkpoint, pictures, tmp_path, folder):
    (pictures / folder).mkdir(parents=True)
    shutil.copy(pictures / "1.png", pictures / folder / "x.png")
    words = ("encode", pictures, "--checkpoint", checkpoint, "--out", tmp_path / "streams", "--format", "dqc")
    assert run(*words)[0] == 0
    assert len(list((tmp_path / "streams").rglob("*.dqc"))) == 5 + len(folder.split("/"))
    assert (tmp_path / "streams" / folder / "x.dqc").is_file()
    assert "5 of these 5 files were there already" in run(*words)[1]


def test_a_picture_is_a_png_or_lies_in_a_folder(fails, checkpoint, stream, tmp_path):
    line = fails("decode", stream, "--checkpoint", checkpoint, "--out", tmp_path / "a.jpg")
    assert "a.jpg" in line and "expected a folder or a .png file" in line and not (tmp_path / "a.jpg").exists()


@pytest.mark.parametrize("line", [".", "..", "/"])
@pytest.mark.parametrize("words", ["encode --format dqc", "encode --format shards", "reconstruct"])
def test_a_folder_in_a_list_is_a_broken_file(run, checkpoint, pictures, tmp_path, words, line):
    photos = tmp_path / "photos.txt"
    photos.write_text(f"pictures/0.png\n{line}\n")
    verb, *options = words.split()
    code, _, err = run(verb, photos, *options, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert code == 2 and "1 of 2 could not be read and were passed over" in err and "Traceback" not in err
