import random

import numpy as np
import pytest
from PIL import Image

from dqcore.data.crops import CenterCrop, RandomCrop, RandomCropAtMost, RandomResizedCrop, resize_short_side


def _ramp(width, height):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (10, 7), (33, 33)])
@pytest.mark.parametrize(
    "crop", [RandomCrop(32, 36), RandomCropAtMost(32, 36), RandomResizedCrop(32), CenterCrop(32, 36)], ids=repr
)
def test_crops_have_their_size(crop, size):
    image = crop.prepare(Image.new("RGB", size))
    for seed in range(20):
        assert crop.cut(image, random.Random(seed)).size == (32, 32)


@pytest.mark.parametrize(
    ("size", "prepared"), [((40, 30), (40, 30)), ((200, 100), (128, 64)), ((10, 8), (20, 16)), ((64, 90), (64, 90))]
)
def test_small_images_are_not_enlarged(size, prepared):
    assert RandomCropAtMost(16, 64).prepare(Image.new("RGB", size)).size == prepared


def test_random_crops_reach_every_place_and_mirror_half():
    image = _ramp(12, 10)
    places, mirrored = set(), 0
    for seed in range(400):
        pixels = np.asarray(RandomCrop(10, 10).cut(image, random.Random(seed)))
        assert (pixels[0, :, 1] == 0).all()
        places.add(int(pixels[..., 0].min()))
        mirrored += int(pixels[0, 0, 0] > pixels[0, -1, 0])
    assert places == {0, 1, 2} and 160 <= mirrored <= 240
    kept = [np.asarray(RandomCrop(10, 10, flip=False).cut(image, random.Random(seed))) for seed in range(20)]
    assert all(pixels[0, 0, 0] < pixels[0, -1, 0] for pixels in kept)


def test_resized_crops_cover_three_quarters_to_all_of_the_area():
    image = _ramp(100, 100)
    spans = []
    for seed in range(200):
        pixels = np.asarray(RandomResizedCrop(50).cut(image, random.Random(seed))).astype(int)
        spans.append((pixels[..., 1].max() - pixels[..., 1].min() + 2) / 100)
    assert 0.84 < min(spans) < 0.89 and 0.98 < max(spans) <= 1.01


def test_center_crop_is_the_middle():
    pixels = np.asarray(CenterCrop(20, 20).prepare(_ramp(40, 20)))
    assert pixels[0, 0, 0] == 10 and pixels[0, -1, 0] == 29


def test_short_side_is_resized_with_the_aspect_ratio():
    assert resize_short_side(Image.new("RGB", (100, 51)), 25).size == (49, 25)
    assert resize_short_side(Image.new("RGB", (3, 5)), 30).size == (30, 50)
