import logging
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dqcore.data import Images, reading
from dqcore.data.crops import CenterCrop, RandomCrop, RandomCropAtMost, RandomResizedCrop, WholeImage
from dqcore.data.dataset import read_prepared
from dqcore.data.images import BrokenImageError, image_to_tensor, read_image
from dqcore.data.labels import image_labels, labels_of
from dqcore.data.making import Making
from dqcore.data.photos import sample_folder
from dqcore.data.preprocessing import crop_of, preprocess
from dqcore.data.splits import listed_split
from dqcore.data.statistics import measure_images
from dqcore.errors import InputError
from dqcore.inference.protocol import Protocol


def test_an_ordinary_loop(make, image):
    """Its batches under a loader with workers, with PyTorch's own collating; classes by sorted folder name."""
    source = make("photos", {f"{name}/{index}.png": image(index) for index, name in enumerate("bcab")})
    data = Images(source, preprocessing="lsun", size=16, classes=True)
    assert (
        len(data) == 4
        and data.classes == ("a", "b", "c")
        and data.names == ["a/2.png", "b/0.png", "b/3.png", "c/1.png"]
    )
    (images, labels), (more, last) = DataLoader(data, batch_size=3, num_workers=1)
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.float32 and images.abs().max() <= 1
    assert labels.tolist() == [0, 1, 1] and last.tolist() == [2] and more.shape[0] == 1
    assert torch.allclose(images[:, 0, 8, 8], torch.tensor([20.0, 0, 30]) / 127.5 - 1)
    assert repr(data) == "Images(4 images, 3 classes, CenterCrop(size=16, resize=16))"


def test_without_classes_and_preprocessing(make, image):
    source = make("photos", {"1.png": image(1, (9, 7))})
    pixels, label = Images(source)[0]
    assert label == -1 and torch.equal(pixels, image_to_tensor(read_image(source / "1.png")))


def test_transform_takes_the_crop(make, image):
    data = Images(
        make("photos", {"1.png": image(1)}), preprocessing="imagenet", size=8, transform=lambda crop: crop.size
    )
    assert data[0] == ((8, 8), -1)


def test_random_crops_follow_the_seed_of_pytorch(make, image):
    data = Images(make("photos", {"1.png": image(1, (200, 160))}), preprocessing="ffhq", size=16)

    def four(seed):
        torch.manual_seed(seed)
        return torch.stack([data[0][0] for _ in range(4)])

    assert torch.equal(four(0), four(0)) and not torch.equal(four(0), four(1))
    assert not torch.equal(four(0)[0], four(0)[1])
    middle = Images(data.paths[0].parent, preprocessing="ffhq", size=16, training=False)
    assert torch.equal(middle[0][0], middle[0][0])


def test_broken_files_are_named(make, image):
    data = Images(make("photos", {"1.png": image(1), "2.png": b"no image"}))
    with pytest.raises(BrokenImageError, match=r"2\.png: cannot identify"):
        data[1]


def test_a_size_without_a_way_to_cut_is_refused_and_256_is_the_default(make, image):
    source = make("photos", {"1.png": image(1)})
    with pytest.raises(ValueError, match=r"size: expected one of 'imagenet', .* as preprocessing with it"):
        Images(source, size=64)
    assert Images(source).crop == WholeImage()
    assert Images(source, preprocessing="lsun").crop == CenterCrop(256, 256)


def test_what_the_paper_does_with_each_data_set():
    """Table of the released code: training crops, then those for evaluation."""
    expected = {
        "imagenet": RandomCrop(256, 256, flip=True),
        "ffhq": RandomResizedCrop(256, scale=(0.75, 1.0), flip=True),
        "celebahq": CenterCrop(256, 256),
        "lsun": CenterCrop(256, 256),
    }
    for name, crop in expected.items():
        assert preprocess(name, 256, training=True) == crop
        assert preprocess(name, 256, training=False) == CenterCrop(256, 256)
    assert preprocess(None, 256, training=True) == WholeImage()
    with pytest.raises(ValueError, match="preprocessing: expected one of imagenet, ffhq, celebahq, lsun, got 'coco'"):
        preprocess("coco", 256, training=True)
    with pytest.raises(ValueError, match="size: expected at least 1 and whole"):
        preprocess("ffhq", 0, training=True)
    assert crop_of("center", 64, 96, flip=True) == CenterCrop(64, 96)


FFHQ = {f"images1024x1024/0000{index}.png": index for index in range(5)}


@pytest.mark.parametrize("place", ["ffhq", "."])
def test_ffhq_is_split_by_its_lists(make, image, place, tmp_path, caplog):
    """The lists lie in its folder, or beside it as VQGAN's code has them; images may have other folders and endings."""
    source = make("ffhq", {name.replace(".png", ".webp"): image(index, kind="WEBP") for name, index in FFHQ.items()})
    (tmp_path / place / "ffhqtrain.txt").write_text("00003.png\n00000.png\n")
    (tmp_path / place / "ffhqvalidation.txt").write_text("00001.png\n")
    with caplog.at_level(logging.INFO, "dqcore"):
        training = Images(source, preprocessing="ffhq", size=16, split="training")
    assert "2 images stand in neither" in caplog.text
    validation = Images(source, preprocessing="ffhq", size=16, split="validation")
    assert [path.stem for path in training.paths] == ["00003", "00000"] and training.crop == RandomResizedCrop(16)
    assert [path.stem for path in validation.paths] == ["00001"] and validation.crop == CenterCrop(16, 16)
    assert len(Images(source)) == 5


def test_celebahq_beside_ffhq_and_in_an_archive(make, image, tmp_path):
    for name, stem in (("ffhq", "0000"), ("celebahq", "imgHQ0")):
        (tmp_path / f"{name}train.txt").write_text(f"{stem}1.npy\n")
        (tmp_path / f"{name}validation.txt").write_text(f"{stem}2.npy\n")
    source = make("celebahq.zip", {f"imgHQ0{index}.jpg": image(index, kind="JPEG") for index in (1, 2)})
    split = listed_split(source, Images(source).paths)
    assert [[path.name for path in part] for part in split] == [
        ["celebahq.zip::imgHQ01.jpg"],
        ["celebahq.zip::imgHQ02.jpg"],
    ]


def test_lists_that_do_not_fit(make, image, tmp_path):
    source = make("ffhq", {"00000.png": image(0), "00001.png": image(1)})
    with pytest.raises(ValueError, match=r"split: .*ffhq has no lists of its images"):
        Images(source, split="training")
    with pytest.raises(ValueError, match="split: expected one of training, validation, got 'test'"):
        Images(source, split="test")
    (source / "ffhqtrain.txt").write_text("00000.png\n00009.png\n")
    (source / "ffhqvalidation.txt").write_text("00001.png\n")
    with pytest.raises(ValueError, match=r"ffhqtrain\.txt: 1 of its 2 images are not there, such as 00009"):
        Images(source, split="training")
    (source / "ffhqtrain.txt").write_text("00000.png\n00001.png\n")
    with pytest.raises(ValueError, match=r"ffhqvalidation\.txt: 1 images stand in ffhqtrain\.txt too"):
        Images(source, split="training")
    make("ffhq", {"again/00001.png": image(1)})
    with pytest.raises(ValueError, match="two images have one name"):
        Images(source, split="training")


@pytest.mark.parametrize("kind", ["photos", "photos.tar", "photos.zip"])
def test_classes_are_the_folders_in_an_archive(make, image, kind):
    data = Images(make(kind, {"dog/1.png": image(1), "cat/2.png": image(2)}), classes=True)
    assert data.classes == ("cat", "dog") and data.labels == [0, 1]
    with pytest.raises(ValueError, match=r"classes: expected a folder for each class, .*3\.png lies in none"):
        Images(make(f"more/{kind}", {"3.png": image(1)}), classes=True)


def test_the_databases_of_lsun_are_classes(make, image, tmp_path):
    for name in ("church_train_lmdb", "bedroom_train_lmdb"):
        make(f"lsun/{name}", {"0a": image(1, kind="WEBP")})
    data = Images(tmp_path / "lsun", preprocessing="lsun", size=16, classes=True)
    assert data.classes == ("bedroom_train_lmdb", "church_train_lmdb") and data.labels == [0, 1]
    assert data[0][0].shape == (3, 16, 16)


def test_labels_in_shards(make, image):
    members = {"00/1.png": image(1), "00/1.cls": b"11\n", "00/1.json": b"{}", "2.seg.png": image(2), "2.cls": b"3"}
    data = Images(make("photos.tar", members), classes=True)
    assert data.names == ["photos.tar::00/1.png", "photos.tar::2.seg.png"] and data.labels == [11, 3]
    assert len(data.classes) == 12 and data.classes[11] == "11"
    with pytest.raises(ValueError, match=r"more\.tar::2\.png has no label beside it, others have"):
        Images(make("more.tar", {"1.png": image(1), "1.cls": b"1", "2.png": image(2)}), classes=True)
    with pytest.raises(ValueError, match=r"expected the number of a class beside wrong\.tar::1\.png, got 'cat'"):
        Images(make("wrong.tar", {"1.png": image(1), "1.cls": b"cat"}), classes=True)
    assert image_labels([], [], False) == ([], ())


def test_shards_of_webdataset(tmp_path, image):
    """What that library writes is read here, with its labels."""
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    with webdataset.TarWriter(str(tmp_path / "shard-000.tar")) as writer:
        for index in range(3):
            writer.write({"__key__": f"{index:04d}", "png": image(index), "cls": 5 - index})
    data = Images(tmp_path, classes=True)
    assert data.labels == [5, 4, 3] and [float(item[0, 0, 0]) for item, _ in data] == [
        pytest.approx(10 * index / 127.5 - 1) for index in range(3)
    ]


@pytest.fixture
def photo(tmp_path):
    """A large JPEG, smooth as photographs are."""
    noise = np.random.default_rng(0).normal(size=(24, 36, 3))
    small = Image.fromarray((128 + 40 * noise).clip(0, 255).astype(np.uint8))
    small.resize((1200, 800), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg", quality=92)
    return tmp_path / "photo.jpg"


def test_fast_jpeg_decodes_less_and_stays_close(photo):
    assert read_image(photo, least_side=200).size == (600, 400)  # twice 200 remain
    assert read_image(photo, least_side=201).size == (1200, 800)
    assert read_image(photo, least_side=20).size == (150, 100)
    for name in ("imagenet", "ffhq", "lsun"):
        slow, fast = (preprocess(name, 96, training=True) for _ in range(2))
        crops = [
            np.asarray(crop.cut(crop.prepare(read_image(photo, least_side=side)), random.Random(0)), np.float64)
            for crop, side in ((slow, None), (fast, fast.least_side))
        ]
        error = np.square(crops[0] - crops[1]).mean()
        assert 0 < error < 255**2 / 10**4  # 40 dB
    data = Images(photo.parent, preprocessing="lsun", size=96, fast_jpeg=True)
    assert not torch.equal(data[0][0], Images(photo.parent, preprocessing="lsun", size=96)[0][0])


def test_fast_jpeg_leaves_other_formats_and_turned_photos(tmp_path):
    image = Image.new("RGB", (800, 400), "red")
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", least_side=20).size == (800, 400)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", least_side=100).size == (200, 400)
    assert read_image(tmp_path / "turned.jpg", least_side=None).size == (400, 800)


def test_the_number_of_a_class_has_a_limit():
    """Every class up to the largest number gets a name."""
    assert labels_of(["0", "2"], ["a.jpg", "b.jpg"], True) == ([0, 2], ("0", "1", "2"))
    with pytest.raises(ValueError, match="classes: expected numbers below 1,000,000"):
        labels_of(["0", "99999999"], ["a.jpg", "b.jpg"], True)
    for text in ("²", "-1", "1" * 10):
        with pytest.raises(ValueError, match=r"classes: expected the number of a class beside b\.jpg"):
            labels_of(["0", text], ["a.jpg", "b.jpg"], True)


@pytest.mark.parametrize("size", [0, -3, 2.5, "64", True])
def test_a_size_is_a_number_of_pixels(size):
    with pytest.raises(ValueError, match=r"^size: expected at least 1 and whole, got"):
        Images(sample_folder("heldout"), preprocessing="ffhq", size=size)


@pytest.mark.parametrize("size", (10**7, 10**30))
def test_a_size_of_more_pixels_than_are_read(size):
    for named, call in (
        ("size", lambda: Images(sample_folder("heldout"), preprocessing="lsun", size=size)),
        ("size", lambda: Images(sample_folder("heldout"), preprocessing="ffhq", size=size)),
        ("resize", lambda: crop_of("random", 64, size)),
        ("size", lambda: Making(size=size)),
        ("resize", lambda: Making(size=8, resize=size)),
        ("size", lambda: Protocol(size=size)),
    ):
        with pytest.raises(InputError, match=rf"^{named}: {size}x{size} pixels are more than the limit of \d+; --max"):
            call()


def test_a_strip_is_not_resized_to_more_pixels_than_are_read(tmp_path, monkeypatch):
    """Its shorter side as long as a crop's would make it thousands of times as large as the file that was read."""
    monkeypatch.setattr(reading, "main_memory", lambda: 40 * 3 * 10_000)
    Image.new("RGB", (2, 400)).save(tmp_path / "strip.png")
    for crop in (CenterCrop(64, 64), RandomCrop(64, 64)):
        with pytest.raises(BrokenImageError, match=r"strip\.png: resized to 64 .* 64x12800 pixels are more than the l"):
            read_prepared(tmp_path / "strip.png", crop)
    with pytest.raises(BrokenImageError, match=r"strip\.png: resized to 64 "):
        Making(size=64).files(tmp_path / "strip.png", "strip")
    assert "resized to 64" in measure_images([tmp_path / "strip.png"], size=64).broken[0]
    assert RandomCropAtMost(2, 64).prepare(read_image(tmp_path / "strip.png")).size == (2, 400)
    with reading.allow_pixels(100):  # of what is read
        CenterCrop(64, 64)
    with reading.allow_pixels(10**6):
        assert read_prepared(tmp_path / "strip.png", CenterCrop(64, 64)).size == (64, 64)
