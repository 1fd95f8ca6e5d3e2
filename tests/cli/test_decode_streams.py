"""``dqcore decode``: shards, previews, runs that go on after a signal, the largest photo that it reads."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from dqcore.cli import decode
from dqcore.files.sealed import read_sealed, write_sealed
from dqcore.inference import codec as codec_file
from dqcore.inference.codec import load_codec
from dqcore.stream import CodeTables, read_header, write_stream


def test_shards_decode_to_pictures(run, fails, checkpoint, pictures, tmp_path, expected):
    codes, back = tmp_path / "codes", tmp_path / "back"
    assert run("encode", pictures, "--checkpoint", checkpoint, "--out", codes)[0] == 0
    assert run("decode", codes, "--checkpoint", checkpoint, "--out", back)[0] == 0
    for name in ("0.png", "2.png", "more/3.png"):
        assert np.array_equal(np.asarray(Image.open(back / name)), expected(checkpoint, pictures / name))
    write_sealed(codes / "index.json", read_sealed(codes / "index.json") | {"tokenizer": "f" * 64})
    assert "tokenizer" in fails("decode", codes, "--checkpoint", checkpoint, "--out", tmp_path / "other")


def test_a_preview_needs_the_beginning_alone(run, checkpoint, photo, tmp_path):
    out = tmp_path / "photo.dqc"
    assert run("encode", photo, "--checkpoint", checkpoint, "-o", out, "--ratio", 0.4)[0] == 0
    whole, data = tmp_path / "whole.png", out.read_bytes()
    header = read_header(data)
    start = tmp_path / "start.dqc"
    start.write_bytes(data[: header.length + header.coarse_length])
    for source, target in ((out, whole), (start, tmp_path / "start.png")):
        assert run("decode", source, "--checkpoint", checkpoint, "--out", target, "--preview")[0] == 0
    assert np.array_equal(np.asarray(Image.open(whole)), np.asarray(Image.open(tmp_path / "start.png")))
    assert Image.open(whole).size == (130, 90)
    assert "start.dqc: truncated" in run("decode", start, "--checkpoint", checkpoint, "--out", tmp_path / "no")[2]


def test_decoding_goes_on_after_a_signal(run, checkpoint, pictures, tmp_path, monkeypatch):
    out, back = tmp_path / "streams", tmp_path / "back"
    assert run("encode", pictures, "--checkpoint", checkpoint, "--out", out, "--format", "dqc")[0] == 0
    decode_item = decode.decode_item
    with monkeypatch.context() as patch:
        patch.setattr(
            decode, "decode_item", lambda *a, **k: (os.kill(os.getpid(), signal.SIGTERM), decode_item(*a, **k))[1]
        )
        code, _, err = run("decode", out, "--checkpoint", checkpoint, "--out", back)
    assert code == 143 and "stopped after 1 of 4; the same line goes on: dqcore decode" in err
    assert len(list(back.rglob("*.png"))) == 1
    assert run("decode", out, "--checkpoint", checkpoint, "--out", back)[0] == 0
    assert len(list(back.rglob("*.png"))) == 4


def test_the_largest_photo_that_is_read(run, fails, checkpoint, photo, tmp_path):
    args = ("encode", photo, "--checkpoint", checkpoint, "-o", tmp_path / "a.dqc", "--max-pixels")
    assert "130x90 pixels are more than the limit of 11699" in fails(*args, 11699)
    assert "max_pixels: expected at least 1" in fails(*args, 0)
    assert run(*args, 11700)[0] == 0
    args = ("reconstruct", photo, "--checkpoint", checkpoint, "--out", tmp_path / "back", "--max-pixels")
    code, _, err = run(*args, 11699)
    assert code == 2 and "more than the limit of 11699" in err


def test_a_preview_needs_coarse_codes(fails, run, checkpoint, pictures, tmp_path):
    args = ("encode", pictures / "0.png", "--checkpoint", checkpoint, "-o", tmp_path / "a.dqc", "--ratio", 1)
    assert run(*args)[0] == 0
    words = ("decode", tmp_path / "a.dqc", "--checkpoint", checkpoint, "-o", tmp_path / "a.png", "--preview")
    assert "a.dqc has no coarse codes" in fails(*words)


def test_no_picture_stands_where_a_folder_is_to_be(run, checkpoint, pictures, tmp_path):
    (pictures / "more").rename(pictures / "0.png.png")
    (pictures / "0.png").rename(pictures / "0.png.jpg")  # 0.png.png would be the picture's name, and is a folder's
    for kind in ("dqc", "shards"):
        codes, back = tmp_path / kind, tmp_path / f"{kind}-back"
        args = ("encode", pictures, "--checkpoint", checkpoint, "--out", codes, "--format", kind)
        assert run(*args)[0] == 0
        assert run("decode", codes, "--checkpoint", checkpoint, "--out", back)[0] == 0
        own = "0.png.dqc.png" if kind == "dqc" else "0.png.jpg.png"
        assert {str(path.relative_to(back)) for path in back.rglob("*") if path.is_file()} == {
            *("1.png", "2.png", "0.png.png/3.png", own)
        }


def test_a_source_may_be_called_like_another_ones_picture(run, checkpoint, photo, tmp_path):
    folder, out = tmp_path / "photo.png.d", tmp_path / "back"
    for target in (tmp_path / "photo.dqc", folder / "a.dqc"):
        assert run("encode", photo, "--checkpoint", checkpoint, "--out", target)[0] == 0
    source = folder.rename(tmp_path / "sub.png")
    (tmp_path / "photo.dqc").rename(tmp_path / "sub.dqc")
    assert run("decode", tmp_path / "sub.dqc", source, "--checkpoint", checkpoint, "--out", out)[0] == 0
    assert (out / "sub.dqc.png").is_file() and (out / "sub.png" / "a.png").is_file()


def test_a_photo_that_is_too_large_is_refused_before_its_codes_are_read(run, fails, checkpoint, photo, tmp_path):
    stream = tmp_path / "a.dqc"
    assert run("encode", photo, "--checkpoint", checkpoint, "-o", stream)[0] == 0
    args = ("decode", stream, "--checkpoint", checkpoint, "-o", tmp_path / "a.png", "--max-pixels")
    assert "a.dqc: its 130x90 pixels are more than the limit of 11699; --max-pixels" in fails(*args, 11699)
    assert run(*args, 11700)[0] == 0


def test_another_models_stride_is_refused_before_its_codes_are_read(checkpoint, monkeypatch):
    codec, tables = load_codec(checkpoint), CodeTables.uniform(256, 2)
    monkeypatch.setattr(codec_file, "read_stream", None)
    grain = torch.zeros(8, 8).long()
    data = write_stream(torch.zeros(16, 16).long(), grain, (16, 16), tables, codec.identity)
    with pytest.raises(ValueError, match=r"a photo of 16x16 pixels has other regions than \(8, 8\)"):
        codec.read(data)
