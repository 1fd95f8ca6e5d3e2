"""IDX files: read, refused, and written out as class folders."""

import gzip
import struct

import pytest
import torch
from PIL import Image

from dqcore.data.idx import export_idx, read_idx, read_idx_pair


def idx(values):
    header = b"\x00\x00\x08" + bytes([values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    return header + values.to(torch.uint8).numpy().tobytes()


@pytest.fixture
def folder(tmp_path):
    images, labels = torch.randint(0, 256, (5, 28, 28)), torch.tensor([3, 0, 9, 3, 1])
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path, images, labels


def test_read(folder):
    path, images, labels = folder
    read, classes = read_idx_pair(path, "train")
    assert torch.equal(read.long(), images) and torch.equal(classes, labels)
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        read_idx_pair(path, "t10k")


def test_export(folder, tmp_path):
    path, images, _ = folder
    assert export_idx(path, tmp_path / "out", limit=4) == 4
    names = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png"))
    assert names == ["ankle-boot/00002.png", "dress/00000.png", "dress/00003.png", "t-shirt/00001.png"]
    with Image.open(tmp_path / "out" / "dress" / "00003.png") as image:
        values = torch.tensor(list(image.tobytes())).view(32, 32)
    assert torch.equal(values[2:-2, 2:-2], images[3])
    assert int(values[:2].sum() + values[:, -2:].sum()) == 0


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00\x00\x0d\x01\x00\x00\x00\x01a", idx(torch.ones(3))[:-1], b"\x1f\x8b damaged", b"\x00\x00\x08\x02"],
)
def test_damaged_files_are_named(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match="file"):
        read_idx(tmp_path / "file")
