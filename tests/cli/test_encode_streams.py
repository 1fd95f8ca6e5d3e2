"""``dqcore encode`` and ``dqcore decode`` with ``.dqc`` files."""

import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import dqcore
from dqcore.cli import decode
from dqcore.errors import InputError
from dqcore.files import sole_owner
from dqcore.files.sealed import read_sealed, write_sealed
from dqcore.inference.codec import load_codec
from dqcore.inference.single import write_alone
from dqcore.stream import TABLES, read_header


@pytest.fixture
def photo(tmp_path):
    """A photo of odd size: noise on the left, smooth on the right."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    pixels[:, 60:] = np.linspace(0, 255, 70).astype(np.uint8)[None, :, None]
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def expected(checkpoint, path, **options):
    """The picture that the model itself gives."""
    model = dqcore.DQVAE.from_pretrained(checkpoint)
    pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 127.5 - 1
    height, width = pixels.shape[1:]
    padded = torch.nn.functional.pad(pixels[None], (0, -width % 16, 0, -height % 16), mode="replicate")
    with torch.no_grad():
        encoding = model.encode(padded, **options)
        result = model.decode(encoding.codes, encoding.grain)[0, :, :height, :width]
    return result.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()


def test_a_photo_to_a_file_and_back(run, fails, checkpoint, photo, tmp_path):
    out, picture = tmp_path / "photo.DQC", tmp_path / "back.PNG"  # as some file systems write them
    code, text, _ = run("encode", photo, "--checkpoint", checkpoint, "-o", out, "--ratio", 0.5)
    size = out.stat().st_size
    assert code == 0 and f"{size} bytes, {8 * size / 90 / 130:.4f} bits per pixel as written" in text
    assert "estimate without entropy coding" in text
    assert run("decode", out, "--checkpoint", checkpoint, "--out", picture)[0] == 0
    assert np.array_equal(np.asarray(Image.open(picture)), expected(checkpoint, photo, ratio=0.5))
    again = ("encode", photo, "--checkpoint", checkpoint, "-o", out)
    assert "was there already" in run(*again, "--ratio", 0.5)[1]
    assert "holds another stream" in fails(*again, "--ratio", 1.0)
    assert run(*again, "--ratio", 1.0, "--overwrite")[0] == 0 and out.stat().st_size > size
    assert "is there already" in fails("decode", out, "--checkpoint", checkpoint, "--out", picture)
    shutil.copy(photo, out)
    assert "no .dqc stream" in fails(*again, "--overwrite")


def test_targets(run, fails, checkpoint, photo, tmp_path):
    sizes = {}
    for ratio in (0, 1):
        out = tmp_path / f"{ratio}.dqc"
        assert run("encode", photo, "--checkpoint", checkpoint, "-o", out, "--ratio", ratio)[0] == 0
        sizes[ratio] = out.stat().st_size
    limit = (sizes[0] + sizes[1]) // 2
    for name, options in {
        "bytes": ("--bytes", limit),
        "bpp": ("--bpp", 8 * limit / 90 / 130 + 1e-6),
        "codes": ("--num-codes", 101),
        "exact": ("--num-codes", 102, "--exact"),
        "megapixel": ("--num-codes", 8700, "--per-megapixel"),
    }.items():
        out = tmp_path / f"{name}.dqc"
        code, text, err = run("encode", photo, "--checkpoint", checkpoint, "-o", out, *options)
        assert code == 0, err
        sizes[name] = out.stat().st_size, int(text.split(" codes: ")[0].split()[-1])
    assert 0.98 * limit <= sizes["bytes"][0] <= limit
    assert sizes["bpp"][0] == sizes["bytes"][0]
    assert sizes["codes"][1] == 99 and sizes["exact"][1] == 102 and sizes["megapixel"][1] == 99
    args = ("encode", photo, "--checkpoint", checkpoint, "-o", tmp_path / "more.dqc")
    assert "the nearest are 99 or 102" in fails(*args, "--num-codes", 100, "--exact")
    assert "bytes are needed for 130x90 pixels, 20 are allowed" in fails(*args, "--bytes", 20)
    assert "expected one of them" in fails(*args, "--bytes", 20, "--bpp", 1)
    assert "exact: expected num_codes" in fails(*args, "--exact")
    assert "bpp: expected more than 0" in fails(*args, "--bpp", 0)
    assert not (tmp_path / "more.dqc").exists()


def test_a_folder_to_files_and_back(run, fails, checkpoint, pictures, tmp_path):
    shutil.copy(pictures / "0.png", pictures / "0.bmp")
    (pictures / "broken.png").write_bytes(b"no image")
    out, back = tmp_path / "streams", tmp_path / "back"
    args = ("encode", pictures, "--checkpoint", checkpoint, "--out", out, "--format", "dqc")
    code, text, err = run(*args)
    assert code == 2 and "5 images" in text and "1 broken file passed over" in text and "broken.png" in err
    assert "photos: 1 of 6 could not be read and were passed over, the first: " in err
    files = {path.relative_to(out).as_posix() for path in out.rglob("*.dqc")}
    assert files == {"0.dqc", "0.png.dqc", "1.dqc", "2.dqc", "more/3.dqc"}
    total = sum(path.stat().st_size for path in out.rglob("*.dqc"))
    pixels = 4 * 64 * 48 + 50 * 30
    assert f"5 photos, {total} bytes, {8 * total / pixels:.4f} bits per pixel as written" in text
    assert "5 of these 6 files were there already" in run(*args)[1]
    assert "codes of another ratio" in fails(*args, "--ratio", 0.5)
    (out / "2.dqc").write_bytes((out / "2.dqc").read_bytes()[:-1])
    assert "1 of 5 were not decoded, the first:" in (
        message := run("decode", out, "--checkpoint", checkpoint, "--out", back)[2]
    )
    (out / "aa.dqc").mkdir()  # a folder is no stream, whatever it is called
    assert "1 of 5 were not decoded" in run("decode", out, "--checkpoint", checkpoint, "--out", back)[2]
    (out / "aa.dqc").rmdir()
    assert "2.dqc: truncated" in message or "2.dqc: damaged" in message
    found = {path.relative_to(back).as_posix() for path in back.rglob("*.png")}
    assert found == {"0.png", "0.png.png", "1.png", "more/3.png"}
    assert np.array_equal(np.asarray(Image.open(back / "1.png")), expected(checkpoint, pictures / "1.png"))
    (out / "0.dqc").unlink()
    assert "3 of these 6 files were there already" in run(*args)[1]  # what is lost or cut off is encoded again
    assert sum(path.stat().st_size for path in out.rglob("*.dqc")) == total


def test_shards_decode_to_pictures(run, fails, checkpoint, pictures, tmp_path):
    codes, back = tmp_path / "codes", tmp_path / "back"
    assert run("encode", pictures, "--checkpoint", checkpoint, "--out", codes)[0] == 0
    assert run("decode", codes, "--checkpoint", checkpoint, "--out", back)[0] == 0
    for name in ("0.png", "2.png", "more/3.png"):
        assert np.array_equal(np.asarray(Image.open(back / name)), expected(checkpoint, pictures / name))
    write_sealed(codes / "index.json", read_sealed(codes / "index.json") | {"tokenizer": "f" * 64})
    assert "tokenizer" in fails("decode", codes, "--checkpoint", checkpoint, "--out", tmp_path / "other")


def test_a_list_of_photos_elsewhere(run, fails, checkpoint, pictures, tmp_path):
    """What is made of them stays in the folder that was named, whatever way the list goes to them."""
    source, out = tmp_path / "lists" / "deep" / "list.txt", tmp_path / "out"
    source.parent.mkdir(parents=True)
    source.write_text(f"../../pictures/0.png\n{pictures}/more/3.png\n")
    args = ("encode", source, "--checkpoint", checkpoint, "--out")
    assert run(*args, out / "streams", "--format", "dqc")[0] == run(*args, out / "shards")[0] == 0
    names = {"pictures/0", "pictures/more/3"}
    assert set(tmp_path.rglob("*.dqc")) == {out / "streams" / f"{name}.dqc" for name in names}
    assert run("decode", out / "shards", "--checkpoint", checkpoint, "--out", out / "new")[0] == 0
    assert set((out / "new").rglob("*.png")) == {out / "new" / f"{name}.png" for name in names}
    index = read_sealed(out / "shards" / "index.json")
    for entry in index["images"]:
        entry["name"] = f"../../{entry['name']}"  # as earlier versions called them
    write_sealed(out / "shards" / "index.json", index)
    assert run("decode", out / "shards", "--checkpoint", checkpoint, "--out", out / "old")[0] == 0
    assert "2 of these 2 files were there already" in run(*args, out / "shards")[1]
    shutil.copytree(pictures, source.parent / "pictures")
    source.write_text("../../pictures/0.png\npictures/0.png\n")
    assert "would both be called pictures/0.png" in fails(*args, out / "both")


def test_nothing_is_passed_over_in_silence(run, fails, checkpoint, pictures, tmp_path):
    out, others = tmp_path / "codes", tmp_path / "others"
    args = ("encode", pictures, "--checkpoint", checkpoint, "--out", out)
    assert "already" not in run(*args)[1]
    assert "4 of these 4 files were there already" in run(*args)[1]
    others.mkdir()
    shutil.copy(pictures / "0.png", others / "1.png")  # a name that is taken, by another photo
    assert "codes of another 1.png" in fails("encode", others, "--checkpoint", checkpoint, "--out", out)
    (others / "1.png").rename(others / "new.png")
    code, text, _ = run("encode", others, "--checkpoint", checkpoint, "--out", out)
    assert code == 0 and "5 images" in text and "already" not in text


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


def test_fit_tables(run, fails, checkpoint, pictures, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    old = tmp_path / "old.dqc"
    assert run("encode", pictures / "0.png", "--checkpoint", model, "-o", old)[0] == 0
    code, text, _ = run("fit-tables", model, "--data", pictures)
    assert code == 0 and "tables of 4 photos" in text and (model / TABLES).is_file()
    new = tmp_path / "new.dqc"
    assert run("encode", pictures / "0.png", "--checkpoint", model, "-o", new)[0] == 0
    assert new.stat().st_size < old.stat().st_size
    codec = load_codec(model, "cpu")
    assert torch.equal(codec.read(old.read_bytes()).codes, codec.read(new.read_bytes()).codes)
    assert "no such folder" in fails("fit-tables", tmp_path / "none", "--data", pictures)
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("a.png\n")
    code, _, err = run("fit-tables", model, "--data", tmp_path / "list.txt")
    assert code == 2 and err.startswith("broken: ") and "data: 1 of 1 could not be read" in err and "a.png" in err


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


def test_no_two_photos_share_a_file(run, checkpoint, pictures, tmp_path):
    """Names whose endings, taken off or put on, make one name of two photos, in one run or in two."""
    folder, out = tmp_path / "photos", tmp_path / "streams"
    folder.mkdir()
    shutil.copy(pictures / "0.png", folder / "x.bmp")
    shutil.copy(pictures / "1.png", folder / "x.png.bmp")
    args = ("encode", folder, "--checkpoint", checkpoint, "--out", out, "--format", "dqc")
    assert run(*args)[0] == 0
    before = {path.name: path.read_bytes() for path in out.glob("*.dqc")}
    shutil.copy(pictures / "3.png" if (pictures / "3.png").exists() else pictures / "2.png", folder / "x.png")
    assert run(*args)[0] == 0
    after = {path.name: path.read_bytes() for path in out.glob("*.dqc")}
    assert len(after) == 3 and after.items() >= before.items()
    assert "3 of these 3 files were there already" in run(*args)[1]


def test_a_stream_that_somebody_put_there_stays(run, checkpoint, pictures, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "streams"
    folder.mkdir()
    shutil.copy(pictures / "0.png", folder / "a.png")
    args = ("encode", folder, "--checkpoint", checkpoint, "--out", out, "--format", "dqc")
    assert run(*args)[0] == 0
    assert run("encode", pictures / "1.png", "--checkpoint", checkpoint, "-o", out / "mine.dqc")[0] == 0
    before = (out / "mine.dqc").read_bytes()
    shutil.copy(pictures / "0.png", folder / "mine.png")
    assert run(*args)[0] == 0
    assert (out / "mine.dqc").read_bytes() == before and (out / "mine.png.dqc").is_file()


def test_a_stream_goes_into_a_folder_that_nobody_fills(run, fails, checkpoint, pictures, tmp_path, monkeypatch):
    """One that is filled has chosen its names, and one that was filled knows what lies in it."""
    monkeypatch.setattr("dqcore.files.PATIENCE", 0.1)
    out = tmp_path / "streams"
    args = ("--checkpoint", checkpoint, "-o")
    with ThreadPoolExecutor(1) as other, sole_owner(out):
        single = ("encode", pictures / "1.png", *args, out / "mine.dqc")
        assert other.submit(fails, *single).result().endswith(f"another process is encoding in {out}\n")
    assert not (out / "mine.dqc").exists()
    assert run("encode", pictures / "0.png", *args, out)[0] == 0
    before = (out / "0.dqc").read_bytes()
    single = ("encode", pictures / "1.png", *args, out / "0.dqc")
    assert f"0.dqc is one of the streams that {out / 'index.json'} lists" in fails(*single, "--overwrite")
    assert (out / "0.dqc").read_bytes() == before
    assert "the same bytes" in run("encode", pictures / "0.png", *args, out / "0.dqc", "--overwrite")[1]


def test_a_stream_goes_below_a_folder_that_nobody_fills(run, checkpoint, pictures, tmp_path, monkeypatch):
    """An index lists what lies in the folders of its folder, however the way there is written; others' say nothing."""
    monkeypatch.setattr("dqcore.files.PATIENCE", 0.1)
    out, link = tmp_path / "streams", tmp_path / "link"
    (tmp_path / "index.json").write_text("[]")
    batch = ("encode", pictures / "more", pictures / "0.png", "--checkpoint", checkpoint, "-o", out, "--format", "dqc")
    assert run(*batch)[0] == 0
    stream, listed = out / "more" / "3.dqc", re.escape(f"{out / 'index.json'} lists")
    link.symlink_to(out / "more")
    before = stream.read_bytes()
    for path in (stream, link / "3.dqc"):
        with pytest.raises(InputError, match=listed):
            write_alone(path, b"dqc", overwrite=True)
    with ThreadPoolExecutor(1) as other, sole_owner(out), pytest.raises(InputError, match="another process"):
        other.submit(write_alone, link / "mine.dqc", b"dqc").result()
    stream.unlink()
    with pytest.raises(InputError, match=listed):  # the batch would replace it
        write_alone(stream, b"dqc")
    assert run(*batch)[0] == 0 and stream.read_bytes() == before
    assert write_alone(link / "mine.dqc", b"dqc") and not write_alone(stream, before)


def test_options_that_change_nothing_are_named(run, checkpoint, pictures, tmp_path):
    photo, shards = pictures / "0.png", ("encode", pictures, "--checkpoint", checkpoint, "-o", tmp_path / "shards")
    args = ("encode", photo, "--checkpoint", checkpoint, "-o")
    for words, names in (
        ((*args, tmp_path / "a.dqc", "--batch-size", 2), {"batch-size"}),
        ((*args, tmp_path / "streams", "--overwrite"), {"overwrite"}),
        ((*args, tmp_path / "streams", "--overwrite", "--shard-size", 3), {"overwrite", "shard-size"}),
        ((*shards, "--shard-size", 3), set()),
        ((*shards, "--shard-size", 2, "--batch-size", 2), {"shard-size", "batch-size"}),
    ):
        code, _, err = run(*words)
        assert code == 0 and set(re.findall("note: --(.*) changed nothing: ", err)) == names, words


def test_a_preview_needs_coarse_codes(fails, run, checkpoint, pictures, tmp_path):
    args = ("encode", pictures / "0.png", "--checkpoint", checkpoint, "-o", tmp_path / "a.dqc", "--ratio", 1)
    assert run(*args)[0] == 0
    words = ("decode", tmp_path / "a.dqc", "--checkpoint", checkpoint, "-o", tmp_path / "a.png", "--preview")
    assert "a.dqc has no coarse codes" in fails(*words)
