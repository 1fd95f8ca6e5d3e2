"""``dqcore data stats`` and ``dqcore data make``."""

import json
import os
import shutil
import signal
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dqcore.cli import data_make
from dqcore.data import Images
from dqcore.data.images import image_to_tensor, list_images, read_image
from dqcore.data.making import new_names
from dqcore.files.sealed import read_sealed, write_sealed
from dqcore.nn.router import EntropyRouter


@pytest.fixture
def photos(pictures):
    """Two folders of pictures of several kinds, and a broken file."""
    Image.new("RGB", (100, 80), (255, 0, 127)).save(pictures / "more" / "plain.jpg", quality=95)
    (pictures / "more" / "broken.png").write_bytes(b"no image")
    return pictures


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_stats(run, photos, tmp_path):
    target = tmp_path / "photos.json"
    code, out, err = run("data", "stats", photos, "--size", 64, "--ratios", 0.25, 0.5, "--json", target)
    assert code == 0 and "broken: " in err and "broken.png: cannot identify" in err
    numbers = json.loads(target.read_text())
    assert (numbers["images"], numbers["read"], len(numbers["broken"])) == (6, 6, 1)
    assert numbers["formats"] == {"PNG": 4, "JPEG": 1}
    assert numbers["width"] == {"least": 50, "median": 64, "largest": 100}
    assert numbers["height"] == {"least": 30, "median": 48, "largest": 80} == numbers["short_side"]
    paths = [path for path in list_images(photos) if path.stem != "broken"]
    pixels = torch.cat([image_to_tensor(read_image(path)).flatten(1) for path in paths], 1).double()
    assert numbers["colour_mean"] == pytest.approx(pixels.mean(1).tolist(), abs=1e-6)
    assert numbers["colour_deviation"] == pytest.approx(pixels.std(1, correction=0).tolist(), abs=1e-6)
    router = EntropyRouter(0.25, 16)
    router.fit(
        image for image, _ in torch.utils.data.DataLoader(Images(_good(photos, paths), preprocessing="lsun", size=64))
    )
    assert numbers["thresholds"]["0.25"] == pytest.approx(float(router.thresholds[0]), abs=1e-6)
    assert "images            6\n" in out and "4 PNG, 1 JPEG" in out and " 0.25    " in out


def _good(folder, paths):
    """A list of the images that can be read."""
    (folder.parent / "good.txt").write_text("".join(f"{path}\n" for path in paths))
    return folder.parent / "good.txt"


def test_stats_of_some(run, fails, photos, tmp_path):
    code, out, _ = run("data", "stats", photos, "--limit", 3, "--seed", 1, "--size", 32, "--workers", 1)
    assert code == 0 and "6, 3 of them read" in out
    (tmp_path / "mine.json").write_text("{}")
    assert "holds no numbers of dqcore data stats" in fails("data", "stats", photos, "--json", tmp_path / "mine.json")
    assert "patch_size: expected a divisor of size (30)" in fails("data", "stats", photos, "--size", 30)
    assert "ratios: expected numbers between 0 and 1" in fails("data", "stats", photos, "--ratios", 1)
    (tmp_path / "bad").mkdir()
    shutil.copy(photos / "more" / "broken.png", tmp_path / "bad")
    code, _, err = run("data", "stats", tmp_path / "bad")
    assert code == 2 and "none of the 1 images can be read" in err


def test_make_crops(run, photos, tmp_path):
    out = tmp_path / "crops"
    code, text, err = run("data", "make", photos, "--out", out, "--size", 32, "--resize", 40)
    assert code == 0 and "5 images, 1 broken file left out" in text and "broken.png" in err
    made = Images(out)
    assert made.names == ["0.png", "1.png", "2.png", "more/3.png", "more/plain.png"]
    assert all(image.shape == (3, 32, 32) for image, _ in made)
    index = json.loads((out / "index.json").read_text())
    assert index["size"] == 32 and [entry["files"] for entry in index["images"]] == [[name] for name in made.names]
    before = contents(out)
    code, text, _ = run("data", "make", photos, "--out", out, "--size", 32, "--resize", 40)
    assert code == 0 and "5 images were there already" in text and contents(out) == before


def test_make_many_crops_in_another_format(run, photos, tmp_path):
    args = ("data", "make", photos / "more", "--size", 16, "--crop", "random", "--resize", 24, "--crops", 3)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        code, text, _ = run(*args, "--encoding", "webp", "--quality", 80, "--seed", seed, "--out", tmp_path / name)
        assert code == 0 and "2 images as 6 crops, 1 broken file left out" in text
    made = list_images(tmp_path / "a")
    assert [path.name for path in made][:3] == ["3-000.webp", "3-001.webp", "3-002.webp"] and len(made) == 6
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    assert len({path.read_bytes() for path in made[:3]}) == 3
    code, _, _ = run("data", "make", photos, "--size", 20, "--crop", "none", "--out", tmp_path / "whole")
    assert sorted(read_image(path).size for path in list_images(tmp_path / "whole"))[:2] == [(25, 20), (26, 20)]


def test_packing_keeps_files_and_labels(run, photos, tmp_path):
    """Shards hold the files as they are; webdataset reads them, and so does everything here."""
    (photos / "other").mkdir()
    for index in range(3):
        (photos / f"{index}.png").rename(photos / "other" / f"{index}.png")
    out = tmp_path / "shards"
    args = ("data", "make", photos, "--packing", "tar", "--classes", "--shard-size", 2, "--out", out)
    code, text, _ = run(*args)
    assert code == 0 and "5 images in 3 shards" in text
    assert sorted(path.name for path in out.iterdir()) == ["index.json", *(f"shard-0000{i}.tar" for i in range(3))]
    data = Images(out, classes=True)
    assert [name.rpartition("::")[2] for name in data.names] == [
        "more/3.png", "more/plain.jpg", "other/0.png", "other/1.png", "other/2.png",
    ]  # fmt: skip
    assert data.labels == [0, 0, 1, 1, 1]
    assert torch.equal(data[1][0], image_to_tensor(read_image(photos / "more" / "plain.jpg")))
    before = contents(out)
    assert run(*args)[0] == 0 and contents(out) == before
    assert "5 images in 1 shard," in run("data", "make", photos, "--packing", "tar", "--out", tmp_path / "one")[1]
    back = tmp_path / "back"
    assert run("data", "make", out, "--out", back)[0] == 0
    assert {name: data for name, data in contents(back).items() if name != "index.json"} == {
        name: data for name, data in contents(photos).items() if "broken" not in name
    }
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    read = list(webdataset.WebDataset([str(path) for path in sorted(out.glob("*.tar"))], shardshuffle=False))
    assert [int(sample["cls"]) for sample in read] == data.labels
    assert read[0]["png"] == (photos / "more" / "3.png").read_bytes()


@pytest.mark.parametrize("packing", ["folder", "tar"])
def test_a_stopped_run_goes_on_to_the_same_files(run, photos, tmp_path, monkeypatch, packing):
    args = ("data", "make", photos, "--size", 16, "--packing", packing, "--shard-size", 2)
    assert run(*args, "--out", tmp_path / "whole")[0] == 0
    add = data_make.DataWriter.add

    def stop_after_two(writer, made):
        add(writer, made)
        if made.name == "1.png":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(data_make.DataWriter, "add", stop_after_two)
    code, _, err = run(*args, "--out", tmp_path / "stopped")
    assert code == 143 and "stopped after 2 of 6; the same line goes on: dqcore data make" in err
    monkeypatch.undo()
    assert run(*args, "--out", tmp_path / "stopped")[0] == 0
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    # killed after files were written and before the index was
    index = tmp_path / "stopped" / "index.json"
    write_sealed(index, read_sealed(index) | {"images": []})
    assert run(*args, "--out", tmp_path / "stopped")[0] == 0
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize("packing", ["folder", "tar"])
def test_what_a_killed_run_did_not_list_is_removed(run, photos, tmp_path, monkeypatch, packing):
    """Its images may be withdrawn since: no later run packs them, or leaves them beside its own."""
    out = tmp_path / "out"
    args = ("data", "make", photos, "--packing", packing, "--shard-size", 2, "--out", out)
    with monkeypatch.context() as killed:
        killed.setattr(data_make.DataWriter, "flush", lambda writer: None)  # none came to its end
        run(*args)
    assert len(list_images(out)) == (5 if packing == "folder" else 4) and not read_sealed(out / "index.json")["images"]
    (photos / "1.png").unlink()
    for _ in range(2):
        assert run(*args)[0] == 0
        assert [name.rpartition("::")[2] for name in Images(out).names] == [
            "0.png",
            "2.png",
            "more/3.png",
            "more/plain.jpg",
        ]
    assert {path.name for path in out.iterdir() if path.is_file()} - set(contents(photos)) == (
        {"index.json"} if packing == "folder" else {"index.json", "shard-00000.tar", "shard-00001.tar"}
    )


def test_a_shard_that_is_not_ours_stays_and_its_images_are_in_no_other(run, photos, tmp_path):
    out = tmp_path / "out"
    args = ("data", "make", photos, "--packing", "tar", "--shard-size", 4, "--out", out)
    assert run(*args)[0] == 0
    (out / "shard-00002.tar").write_bytes(b"mine")
    Image.new("RGB", (9, 9)).save(photos / "new.png")
    before = contents(out)
    for _ in range(2):
        code, _, err = run(*args)
        assert code == 2 and "shard-00002.tar is there already" in err and contents(out) == before
    (out / "shard-00002.tar").unlink()
    index = read_sealed(out / "index.json")
    write_sealed(
        out / "index.json", index | {"images": [each for each in index["images"] if each["shard"] != "shard-00000.tar"]}
    )
    (out / "shard-00000.tar").unlink()
    assert run(*args)[0] == 0 and (out / "shard-00002.tar").is_file()  # above the highest one that is listed


def test_nothing_else_is_overwritten(run, fails, photos, tmp_path):
    out = tmp_path / "crops"
    args = ("data", "make", photos, "--out", out, "--size", 16)
    assert "lies in" in fails("data", "make", photos, "--out", photos / "crops", "--size", 16)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").touch()
    assert "is not empty" in fails("data", "make", photos, "--out", tmp_path / "mine", "--size", 16)
    assert run(*args)[0] == 0
    assert "holds images of another size" in fails("data", "make", photos, "--out", out, "--size", 24)
    shutil.copy(photos / "0.png", photos / "1.png")
    assert "holds the images of another 1.png" in fails(*args)
    (photos / "new.png").write_bytes((photos / "2.png").read_bytes())
    (photos / "1.png").unlink()
    (out / "new.png").write_bytes(b"mine")
    code, _, err = run(*args)
    assert code == 2 and "new.png is there already and holds something else" in err
    assert (out / "new.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resize", 20), "size: expected one with resize or crops"),
        (("--size", 16, "--crops", 2), "crops: expected 1 with crop center"),
        (("--size", 16, "--resize", 8), "resize: expected at least size"),
        (("--size", 16, "--quality", 0), "quality: expected a number from 1 to 100, got 0"),
        (("--size", 0), "size: expected at least 1, got 0"),
        (("--encoding", "webp"), "size: expected one with encoding"),
        (("--quality", 10), "size: expected one with quality"),
        (("--crop", "random"), "size: expected one with crop"),
        (("--classes",), "classes: expected none with --packing folder"),
    ],
)
def test_mistakes(fails, photos, tmp_path, options, message):
    assert message in fails("data", "make", photos, "--out", tmp_path / "x", *options)
    assert not (tmp_path / "x").exists()


def test_names_in_a_new_data_set():
    names = ["a.tar::x/1.b.jpg", "a.tar::2.png"]
    assert list(new_names(names, whole=False).values()) == ["x/1.b", "2"]
    assert list(new_names(names, whole=True).values()) == ["x/1.b.jpg", "2.png"]
    assert list(new_names(names, whole=True, dots=False).values()) == ["x/1_b.jpg", "2.png"]
    assert list(new_names(names, whole=False, dots=False).values()) == ["x/1_b", "2"]
    assert list(new_names(["a_lmdb::0.1"], whole=True, dots=False).values()) == ["0_1"]  # a key, which has no ending
    assert list(new_names(["../y/1.png", "a/1.png"], whole=True).values()) == ["y/1.png", "a/1.png"]
    assert list(new_names(["1.png", "1.jpg"], whole=False).values()) == ["1.png", "1.jpg"]
    with pytest.raises(ValueError, match="two of its images would be called the same"):
        new_names(["../y/1.png", "y/1.png"], whole=True)


def test_names_of_images_from_several_archives(run, tmp_path):
    for shard, value in (("a", 10), ("b", 20)):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / "1.png")
        (tmp_path / "in").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "in" / f"{shard}.tar", "w") as tar:
            tar.add(tmp_path / "1.png", "cat/1.png")
    assert run("data", "make", tmp_path / "in", "--out", tmp_path / "out")[0] == 0
    assert Images(tmp_path / "out").names == ["a.tar/cat/1.png", "b.tar/cat/1.png"]


def test_keys_of_a_database_get_an_ending(run, tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="pip install 'dqcore[lmdb]'")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "1.webp", lossless=True)
    with lmdb.open(str(tmp_path / "church_lmdb"), map_size=1 << 20) as database, database.begin(write=True) as writing:
        writing.put(b"0a1b", (tmp_path / "1.webp").read_bytes())
    assert run("data", "make", tmp_path / "church_lmdb", "--out", tmp_path / "out")[0] == 0
    assert Images(tmp_path / "out").names == ["0a1b.webp"]
