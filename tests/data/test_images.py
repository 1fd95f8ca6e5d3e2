import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dqcore.data import provenance, reading
from dqcore.data.images import (
    BrokenImageError,
    image_to_tensor,
    list_images,
    read_image,
    readable_images,
    split_images,
    tensor_to_image,
)
from dqcore.data.making import MadeImages, Making
from dqcore.data.shards import file_digest
from dqcore.data.statistics import _Measured
from dqcore.errors import InputError


def _save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def _pixel(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_folder_is_searched_in_a_fixed_order(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b.webp", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in (".hidden.png", "notes.md", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a/b.webp", "a/z.JPG", "b.png", "c.png"]


def test_list_keeps_its_order_and_is_relative_to_its_folder(tmp_path):
    (tmp_path / "train.txt").write_text("z.png\n\nsub/a.png\n")
    assert list_images(tmp_path / "train.txt") == [tmp_path / "z.png", tmp_path / "sub/a.png"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing", FileNotFoundError, "missing: no such folder"),
        ("empty", ValueError, "holds no image"),
        ("file.png", ValueError, "expected a folder of images or a .txt list"),
    ],
)
def test_bad_sources(tmp_path, name, error, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").touch()
    with pytest.raises(error, match=message):
        list_images(tmp_path / name)


def test_split_is_by_file_and_does_not_depend_on_order(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(100)]
    training, validation = split_images(paths, 0.1, root=tmp_path)
    assert len(validation) == 10 and sorted(training + validation) == sorted(paths)
    assert set(split_images(paths[::-1], 0.1, root=tmp_path)[1]) == set(validation)
    more = [*paths, *(tmp_path / f"new{index}.png" for index in range(10))]
    assert len(set(split_images(more, 0.1, root=tmp_path)[1]) & set(validation)) >= 8
    assert len(split_images(paths[:5], 0.01, root=tmp_path)[1]) == 1
    assert split_images(paths, 0, root=tmp_path) == (paths, [])
    with pytest.raises(ValueError, match="share: expected"):
        split_images(paths, 1.0, root=tmp_path)
    with pytest.raises(ValueError, match="leaves none"):
        split_images(paths[:1], 0.5, root=tmp_path)


def test_every_mode_becomes_rgb(tmp_path):
    assert _pixel(_save(tmp_path / "l.png", Image.new("L", (4, 4), 100))) == (100, 100, 100)
    assert _pixel(_save(tmp_path / "1.png", Image.new("1", (4, 4), 1))) == (255, 255, 255)
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert _pixel(_save(tmp_path / "p.png", palette)) == (10, 200, 30)
    red, green, blue = _pixel(_save(tmp_path / "cmyk.jpg", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), quality=100))
    assert red > 200 and green < 60 and blue < 60


def test_transparency_is_laid_over_white(tmp_path):
    assert _pixel(_save(tmp_path / "a.png", Image.new("RGBA", (4, 4), (200, 0, 0, 0)))) == (255, 255, 255)
    assert _pixel(_save(tmp_path / "b.png", Image.new("LA", (4, 4), (0, 128)))) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9] * 256)
    assert _pixel(_save(tmp_path / "c.png", palette, transparency=0)) == (255, 255, 255)
    for name, colour, seen in (("d", (255, 0, 9), (255, 255, 255)), ("e", (254, 0, 9), (254, 0, 9))):
        path = _save(tmp_path / f"{name}.png", Image.new("RGB", (4, 4), colour), transparency=(255, 0, 9))
        assert _pixel(path) == seen


def test_sixteen_bits_keep_their_upper_half(tmp_path):
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    image = read_image(_save(tmp_path / "deep.png", Image.fromarray(ramp)))
    assert np.array_equal(np.asarray(image)[..., 0], ramp >> 8)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(_save(tmp_path / "turned.jpg", image, exif=exif)).size == (4, 6)


def test_broken_files_are_named(tmp_path, monkeypatch):
    whole = _save(tmp_path / "whole.png", Image.effect_noise((64, 64), 50).convert("RGB"))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:500])
    (tmp_path / "text.jpg").write_text("not an image")
    Image.new("F", (4, 4)).save(tmp_path / "float.tiff")
    for name in ("cut.png", "text.jpg", "float.tiff", "missing.png"):
        with pytest.raises(BrokenImageError, match=name):
            read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenImageError, match=r"whole.png.*bomb"):
        read_image(whole)


def test_broken_files_are_reported_and_passed_over(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png", "missing.png")]
    for path in (paths[0], paths[2]):
        _save(path, Image.new("RGB", (2, 1), "red"))
    paths[1].write_text("no image")
    broken = {}
    images = readable_images(paths, broken.__setitem__)
    path, image = next(images)
    assert path == paths[0] and image.size == (2, 1) and not broken  # nothing is read ahead
    assert [path for path, _ in images] == [paths[2]]
    assert list(broken) == [paths[1], paths[3]]
    assert all(reason.startswith(f"{path}: ") for path, reason in broken.items())


def test_readable_images_of_another_reader(tmp_path):
    def read(path):
        if path.name == "b":
            raise BrokenImageError("b: of no use")
        return Image.new("RGB", (1, 1))

    broken = []
    found = list(readable_images([tmp_path / "a", tmp_path / "b"], lambda *what: broken.append(what), read=read))
    assert [path.name for path, _ in found] == ["a"] and broken == [(tmp_path / "b", "b: of no use")]


def test_tensors_and_images_are_inverse():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([pixels, pixels.T, 255 - pixels], axis=-1))
    tensor = image_to_tensor(image)
    assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(np.asarray(tensor_to_image(tensor)), np.asarray(image))
    assert tensor_to_image(torch.full((3, 2, 2), 7.0)).getpixel((0, 0)) == (255, 255, 255)
    for mode in ("L", "RGBA", "P"):
        with pytest.raises(InputError, match=rf"image: expected mode RGB, got {mode}: image.convert"):
            image_to_tensor(image.convert(mode))
    with pytest.raises(InputError, match=r"pixels: expected \(3, H, W\), got \(1, 3, 2, 2\); .* take one image"):
        tensor_to_image(torch.zeros(1, 3, 2, 2))
    for shape in ((2, 2), (1, 2, 2)):
        with pytest.raises(InputError, match=rf"pixels: expected \(3, H, W\), got {re.escape(str(shape))}$"):
            tensor_to_image(torch.zeros(shape))


def test_only_the_formats_that_are_meant(tmp_path):
    """PostScript would run Ghostscript, whatever the file is called."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "y.png", format="TGA")
    for name in ("x.png", "y.png"):
        with pytest.raises(BrokenImageError, match=f"{name}: cannot identify"):
            read_image(tmp_path / name)
    assert read_image(_save(tmp_path / "z.png", Image.new("RGB", (4, 4)), format="WEBP")).size == (4, 4)


def test_the_limit_of_pixels(tmp_path, monkeypatch):
    path = _save(tmp_path / "a.png", Image.new("RGB", (60, 50)))
    monkeypatch.setattr(reading, "main_memory", lambda: 40 * 3 * 2999)
    with pytest.raises(BrokenImageError, match=r"a\.png: 60x50 pixels are more than the limit of 2999; --max-pixels"):
        read_image(path)
    with reading.allow_pixels(3000):
        assert read_image(path).size == (60, 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own gives way to the one that was named
    monkeypatch.setenv(reading.LIMIT_VARIABLE, "3000")
    assert read_image(path).size == (60, 50) and Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setenv(reading.LIMIT_VARIABLE, "many")
    with pytest.raises(BrokenImageError, match="DQCORE_MAX_PIXELS: expected a number of pixels, got 'many'"):
        read_image(path)
    with pytest.raises(ValueError, match="max_pixels: expected at least 1"), reading.allow_pixels(0):
        pass


def test_pipes_and_devices_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        with pytest.raises(BrokenImageError, match=f"{name}: not a regular file"):
            read_image(tmp_path / name)
        assert file_digest(tmp_path / name) == ""
        with pytest.raises(OSError, match="not a regular file"):
            provenance.hash_file(tmp_path / name)
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(ValueError, match="expected a file with a path on each line"):
        list_images(tmp_path / "list.txt")


def test_links_to_folders_are_followed_once(tmp_path):
    for name in ("photos/b/x.png", "elsewhere/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    photos = tmp_path / "photos"
    (photos / "a").symlink_to(photos / "b")  # sorts before the folder itself
    (photos / "b" / "loop").symlink_to(photos)
    (photos / "far").symlink_to(tmp_path / "elsewhere")
    (photos / "gone").symlink_to(tmp_path / "nowhere")
    assert [path.relative_to(photos).as_posix() for path in list_images(photos)] == ["b/x.png", "far/y.png"]


def test_sixteen_bits_with_a_transparent_value(tmp_path):
    ramp = np.array([[0, 1000], [1001, 65535]], np.uint16)
    path = tmp_path / "deep.png"
    Image.fromarray(ramp).save(path)
    data = path.read_bytes()
    chunk = b"tRNS" + (1000).to_bytes(2, "big")
    chunk = (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    place = data.index(b"IDAT") - 4
    path.write_bytes(data[:place] + chunk + data[place:])
    assert np.asarray(read_image(path))[..., 0].tolist() == [[0, 255], [3, 255]]
    image = Image.new("RGB", (2, 2))
    for key in ((1000, 0, 0), (0, 0, 256)):
        image.info["transparency"] = key
        with pytest.raises(ValueError, match="16-bit colour"):
            reading._to_rgb(image, "PNG")


def test_pixels_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "deep.tiff")
    with pytest.raises(BrokenImageError, match=r"deep\.tiff: 32-bit pixels have no fixed range"):
        read_image(tmp_path / "deep.tiff")


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    _save(tmp_path / name, Image.new("RGB", (4, 4)))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9.png\r\n")
    for source in (tmp_path, tmp_path / "list.txt"):
        assert list_images(source) == [tmp_path / name]
    assert read_image(list_images(tmp_path)[0]).size == (4, 4)
    assert split_images([tmp_path / name, tmp_path / "b.png"], 0.5, root=tmp_path)
    (tmp_path / "list.txt").write_text("a.png\n", encoding="utf-16")
    with pytest.raises(ValueError, match="expected a list in UTF-8"):
        list_images(tmp_path / "list.txt")


def _grey_png(bits, rows, key):
    """A grey PNG of few bits, which Pillow does not write, with a transparent value."""
    lines = (int("".join(f"{value:0{bits}b}" for value in row), 2).to_bytes(1, "big") for row in rows)
    sides, pixels = struct.pack(">II", len(rows[0]), len(rows)), zlib.compress(b"".join(b"\0" + line for line in lines))
    header = b"IHDR" + sides + bytes([bits, 0, 0, 0, 0])
    parts = (header, b"tRNS" + key.to_bytes(2, "big"), b"IDAT" + pixels, b"IEND")
    chunks = ((len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_of_few_bits_is_white(tmp_path, bits):
    """Others keep their value, scaled to 8 bits."""
    row, key = [0, 1] * (4 // bits) if bits < 8 else [1], 1
    (tmp_path / "a.png").write_bytes(_grey_png(bits, [row], key))
    expected = [255 if value == key else value * 255 // (2**bits - 1) for value in row]
    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == expected


def test_the_named_limit_reaches_workers_that_see_no_context(tmp_path):
    """They are made from what the data set holds, wherever that was named."""
    path = _save(tmp_path / "a.png", Image.new("RGB", (30, 20)))
    with reading.allow_pixels(100):
        made = MadeImages([("a.png", path)], Making(), {"a.png": "a.png"}, {})
        measured = _Measured([path], 16, 16)
    assert made[0].name == "a.png"
    assert "more than the limit of 100" in made[0].reason and "more than the limit of 100" in measured[0].reason


def test_a_header_may_tell_of_many_pixels(tmp_path, monkeypatch):
    path = _save(tmp_path / "a.png", Image.new("RGB", (300, 200)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 25_000)
    with reading.allow_pixels(60000):
        found = _Measured([path], 16, 16)[0]
        assert found.format == "PNG" and not found.reason
        assert MadeImages([("a", path)], Making(), {"a": "a"}, {})[0].files[0][0] == "a.png"
    several = _save(
        tmp_path / "b", Image.new("RGB", (9, 9)), format="MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]
    )
    assert MadeImages([("b", several)], Making(), {"b": "b"}, {})[0].files[0][0] == "b.jpg"
