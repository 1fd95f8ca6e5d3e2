"""``dqcore encode``."""

import json
import os
import shlex
import signal
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import dqcore
from dqcore import files
from dqcore.data.shards import ShardWriter, read_shards
from dqcore.files.sealed import read_sealed, write_sealed
from dqcore.inference.stream_folder import StreamFolder


def test_encode(run, checkpoint, pictures, tmp_path):
    (pictures / "1b.png").write_bytes(b"no image")
    out = tmp_path / "codes"
    code, text, err = run("encode", pictures, "--checkpoint", checkpoint, "--out", out, "--shard-size", 3)
    assert code == 2 and "photos: 1 of 5 could not be read" in err
    assert "4 images" in text and "1 broken" in text and "1b.png" in err
    assert sorted(path.name for path in out.iterdir()) == [
        "codes-00000.safetensors",
        "codes-00001.safetensors",
        "index.json",
    ]
    model = dqcore.DQVAE.from_pretrained(checkpoint)
    found = {entry["name"]: (entry, codes, grain) for entry, codes, grain in read_shards(out)}
    assert sorted(found) == ["0.png", "1.png", "2.png", "more/3.png"]
    for name, (entry, codes, grain) in found.items():
        width, height = Image.open(pictures / name).size
        pixels = torch.from_numpy(np.asarray(Image.open(pictures / name)).copy()).permute(2, 0, 1) / 127.5 - 1
        padded = torch.nn.functional.pad(pixels[None], (0, -width % 16, 0, -height % 16), mode="replicate")
        with torch.no_grad():
            expected = model.encode(padded)
        assert entry["size"] == [height, width]
        assert torch.equal(codes, expected.codes[0]) and torch.equal(grain, expected.grain[0])


def test_one_photo_under_two_names(run, checkpoint, pictures, tmp_path):
    """As with a folder and one in it; both names get its codes, or are called broken."""
    (pictures / "more" / "4.png").write_bytes(b"no image")
    code, _, err = run("encode", pictures, pictures / "more", "--checkpoint", checkpoint, "--out", tmp_path / "codes")
    assert code == 2 and "2 of 7 could not be read" in err
    found = {entry["name"]: codes for entry, codes, _ in read_shards(tmp_path / "codes")}
    assert len(found) == 5 and torch.equal(found["pictures/more/3.png"], found["more/3.png"])


def test_nothing_to_encode_is_an_error(run, checkpoint, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    for kind in ("dqc", "shards"):
        words = ("encode", tmp_path / "a.png", "--checkpoint", checkpoint, "--out", tmp_path / kind, "--format", kind)
        code, _, err = run(*words)
        assert code == 2 and "photos: none of these 1 can be read, the first:" in err


def test_encode_goes_on_and_refuses(run, fails, checkpoint, pictures, tmp_path):
    out = tmp_path / "codes"
    args = ("encode", pictures, "--checkpoint", checkpoint, "--out", out, "--shard-size", 2)
    assert run(*args)[0] == 0
    whole = [(entry["name"], codes) for entry, codes, _ in read_shards(out)]
    index = read_sealed(out / "index.json")
    index["images"] = index["images"][:2]  # as a kill after the first shard leaves it
    write_sealed(out / "index.json", index)
    untouched = (out / "codes-00000.safetensors").stat().st_mtime_ns
    assert run(*args)[0] == 0
    again = [(entry["name"], codes) for entry, codes, _ in read_shards(out)]
    assert [name for name, _ in again] == [name for name, _ in whole]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(again, whole, strict=True))
    assert (out / "codes-00000.safetensors").stat().st_mtime_ns == untouched
    (out / "codes-00000.safetensors").rename(tmp_path / "lost")
    assert "lacks codes-00000.safetensors, which its index.json lists" in fails(*args)
    (tmp_path / "lost").rename(out / "codes-00000.safetensors")
    assert "codes of another ratio" in fails(*args, "--ratio", 0.5)
    assert "is not empty" in fails("encode", pictures, "--checkpoint", checkpoint, "--out", pictures)
    assert "shard_size: expected at most 100,000" in fails(*args[:-1], 200_000)


def test_a_run_killed_in_its_first_shard_goes_on(run, checkpoint, pictures, tmp_path, monkeypatch):
    out = tmp_path / "codes"
    args = ("encode", pictures, "--checkpoint", checkpoint, "--out", out)

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "add", killed)
        with pytest.raises(Killed):
            run(*args)
    (out / "codes-00000.safetensors").write_bytes(b"half")  # as if it were renamed, but not in the index yet
    assert run(*args)[0] == 0
    assert len(list(read_shards(out))) == 4


def test_a_concurrent_run_is_refused(fails, checkpoint, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    out = tmp_path / "codes"
    held, done = threading.Event(), threading.Event()

    def other():
        with files.sole_owner(out):
            held.set()
            done.wait()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    try:
        for form in ("shards", "dqc"):
            args = ("encode", pictures, "--checkpoint", checkpoint, "--out", out, "--format", form)
            assert "another process is encoding in" in fails(*args)
    finally:
        done.set()
        thread.join()


def test_a_broken_file_is_tried_again(run, checkpoint, pictures, tmp_path):
    photo = pictures / "1.png"
    whole = photo.read_bytes()
    for form in ("shards", "dqc"):
        out = tmp_path / form
        args = ("encode", pictures, "--checkpoint", checkpoint, "--out", out, "--format", form)
        photo.write_bytes(b"no image")
        code, text, _ = run(*args)
        assert code == 2 and "1 broken" in text
        photo.write_bytes(whole)
        code, text, _ = run(*args)
        assert code == 0 and "4 images" in text and "0 broken" in text
        index = json.loads((out / "index.json").read_text())
        assert index["broken"] == [] and len(index["images"]) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("form", ["shards", "dqc"])
def test_a_signal_keeps_what_is_encoded_and_names_the_line(
    run, checkpoint, pictures, tmp_path, monkeypatch, form, number, code
):
    out = tmp_path / "codes"
    args = ["encode", pictures, "--checkpoint", checkpoint, "--out", out, "--format", form, "--batch-size", 1]
    writer = ShardWriter if form == "shards" else StreamFolder
    add = writer.add
    with monkeypatch.context() as patch:
        patch.setattr(writer, "add", lambda *about: (add(*about), os.kill(os.getpid(), number))[0])
        found, _, err = run(*args)
    assert found == code and "stopped after 1 of 4; the same line goes on: dqcore encode" in err
    assert len(json.loads((out / "index.json").read_text())["images"]) == 1
    line = shlex.split(err.partition("goes on: dqcore ")[2])
    found, text, _ = run(*line)
    assert found == 0 and "4 images" in text and "1 of these 4 files were there already" in text
