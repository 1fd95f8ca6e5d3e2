import numpy as np
import pytest
import torch
from PIL import Image

from dqcore.data.images import (
    BrokenImageError,
    image_to_tensor,
    list_images,
    read_image,
    readable_images,
    split_images,
    tensor_to_image,
)


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
