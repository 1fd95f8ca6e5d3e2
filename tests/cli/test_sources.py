"""The verbs on images in archives: the same numbers as on a folder, and names that tell which image is meant."""

import tarfile

import pytest
import torch
from PIL import Image

from dqcore.data.codes import read_codes
from dqcore.data.shards import read_index, read_shards
from dqcore.files.sealed import read_sealed, write_sealed
from dqcore.inference.load import hash_files
from dqcore.inference.photos import PhotoBatches, list_photos


@pytest.fixture
def shard(pictures, tmp_path):
    """A tar of the four pictures."""
    path = tmp_path / "photos" / "shard-0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        tar.add(pictures, ".")
    return path


def test_encode_a_shard(run, checkpoint, pictures, shard, tmp_path):
    for source in (pictures, shard, shard.parent):
        code, out, _ = run("encode", source, "--checkpoint", checkpoint, "--out", tmp_path / f"{source.name}-codes")
        assert code == 0 and "4 images" in out
    found = {name: list(read_shards(tmp_path / f"{name}-codes")) for name in ("pictures", "shard-0.tar", "photos")}
    names = [entry["name"] for entry, _, _ in found["shard-0.tar"]]
    assert names == [f"shard-0.tar::{entry['name']}" for entry, _, _ in found["pictures"]]
    assert [entry["name"] for entry, _, _ in found["photos"]] == names
    for one, other in zip(found["pictures"], found["photos"], strict=True):
        assert one[0]["sha256"] == other[0]["sha256"] and torch.equal(one[1], other[1])
    code, out, _ = run("encode", shard.parent, "--checkpoint", checkpoint, "--out", tmp_path / "photos-codes")
    assert code == 0 and "4 of these 4 files were there already" in out


def test_labels_go_with_the_codes(run, fails, checkpoint, pictures, shard, tmp_path):
    """A prior learns classes from the codes alone; a folder that was encoded before labels were kept gets them."""
    sizes = {path.name: Image.open(path).size for path in pictures.rglob("*.png")}
    alike = [path for path in sorted(pictures.rglob("*.png")) if sizes[path.name] == (64, 48)]
    words = ("encode", shard, "--checkpoint", checkpoint, "--out", tmp_path / "codes")
    for labels in ({}, {path.name: 7 - number for number, path in enumerate(alike)}):
        with tarfile.open(shard, "w") as tar:
            for path in reversed(alike):
                tar.add(path, path.name)
                if path.name in labels:
                    (tmp_path / "label").write_text(f"{labels[path.name]}\n")
                    tar.add(tmp_path / "label", f"{path.stem}.cls")
        assert run(*words)[0] == 0
    shard.unlink()
    codes = read_codes(tmp_path / "codes", classes=True)
    assert dict(zip(codes.names, codes.labels.tolist(), strict=True)) == {
        f"shard-0.tar::{name}": label for name, label in labels.items()
    }
    assert codes.classes == tuple("01234567") and read_codes(tmp_path / "codes").labels.unique().tolist() == [-1]
    index = read_sealed(tmp_path / "codes" / "index.json")
    for label, message in (("cat", "expected the number of a class beside"), ("", "has no label beside it")):
        index["images"][1]["label"] = label
        write_sealed(tmp_path / "codes" / "index.json", index)
        train = ("train", "prior", "--codes", tmp_path / "codes", "--classes", "--out", tmp_path / "run")
        assert message in fails(*train)


def test_one_image_of_a_shard(run, checkpoint, shard, tmp_path):
    code, out, _ = run("encode", f"{shard}::more/3.png", "--checkpoint", checkpoint, "-o", tmp_path / "3.dqc")
    assert code == 0 and (tmp_path / "3.dqc").is_file() and "more/3.png: " in out
    code, _, err = run("encode", f"{shard}::more/9.png", "--checkpoint", checkpoint, "-o", tmp_path / "9.dqc")
    assert code == 2 and "9.png: no more/9.png in" in err
    code, _, _ = run("encode", shard, "--checkpoint", checkpoint, "--format", "dqc", "--out", tmp_path / "dqc")
    assert code == 0 and (tmp_path / "dqc" / "shard-0.tar::more" / "3.dqc").is_file()
    assert {entry["name"] for entry in read_index(tmp_path / "dqc")["images"]} >= {"shard-0.tar::more/3.png"}


def test_what_is_measured_is_the_same(pictures, shard, tmp_path):
    """``dqcore evaluate`` reads by these; its protocol has the same hash of the data."""
    (tmp_path / "list.txt").write_text(f"{shard}::more/3.png\n")
    alone, packed, listed = (list_photos([source]) for source in (pictures, shard, tmp_path / "list.txt"))
    assert hash_files(alone) == hash_files(packed) and hash_files(listed) == hash_files(alone[-1:])
    for one, other in zip(PhotoBatches(alone), PhotoBatches(packed), strict=True):
        assert torch.equal(one, other)


def test_reconstruct_a_shard(run, checkpoint, shard, tmp_path):
    code, out, _ = run("reconstruct", shard, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert code == 0 and "4 images" in out
    assert (tmp_path / "out" / "shard-0.tar::more" / "3.png").is_file()


def test_damaged_shards_are_one_line(fails, checkpoint, shard, tmp_path):
    shard.write_bytes(shard.read_bytes()[:9000])
    message = fails("encode", shard, "--checkpoint", checkpoint, "--out", tmp_path / "codes")
    assert "shard-0.tar: damaged" in message
