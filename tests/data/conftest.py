"""Small sources of images, made anew for each test."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image


def encoded(index, size=(24, 20), kind="PNG"):
    """A file of noise in one colour, which tells which image it is: red is ``10 * index``."""
    pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., 0] = 10 * index
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def write_folder(path, members):
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)


def write_lmdb(path, members):
    lmdb = pytest.importorskip("lmdb", reason="pip install 'dqcore[lmdb]'")
    with lmdb.open(str(path), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for name, data in members.items():
            transaction.put(name.encode(), data)


@pytest.fixture
def make(tmp_path):
    """Makes a source by its name: a folder, ``.tar``, ``.zip``, or ``_lmdb``, from names and bytes."""

    def call(name, members):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write = {".tar": write_tar, ".zip": write_zip}.get(path.suffix)
        (write or (write_lmdb if name.endswith("_lmdb") else write_folder))(path, members)
        return path

    return call


@pytest.fixture
def image():
    """Makes the bytes of a small image; see :func:`encoded`."""
    return encoded
