"""``dqcore encode`` to ``.dqc`` files and back: one photo, folders, lists, sizes that are asked for."""

import re
import shutil

import numpy as np
import torch
from PIL import Image

from dqcore.files.sealed import read_sealed, write_sealed
from dqcore.inference.codec import load_codec
from dqcore.stream import TABLES


def test_a_photo_to_a_file_and_back(run, fails, checkpoint, photo, tmp_path, expected):
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


def test_a_folder_to_files_and_back(run, fails, checkpoint, pictures, tmp_path, expected):
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
