"""What a training run reads: the same images and crops from any source, and the split that a data set comes with."""

import dataclasses
import tarfile

import pytest
import torch

from dqcore.data.crops import CenterCrop, RandomCrop, RandomResizedCrop
from dqcore.distributed import World
from dqcore.report.run import _held_out
from dqcore.training import TokenizerTraining
from dqcore.training.tokenizer.images import find_images

WORLD = World(0, 1, torch.device("cpu"))


def test_a_shard_trains_as_its_folder(pictures, options, tmp_path):
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        tar.add(pictures, ".")
    shard, folder = (
        find_images(options(data=data, validation_share=0).resolved(), WORLD)
        for data in (tmp_path / "pictures.tar", pictures)
    )
    for one, other in zip(shard.batches(3, 6), folder.batches(3, 6), strict=True):
        assert torch.equal(one.images, other.images)
        assert [path.rpartition("::")[2] for path in one.paths] == [path.rpartition("/")[2] for path in other.paths]
    assert "pictures.tar::" in shard.training.paths[0].name


def test_lists_split_a_data_set(pictures, options, tmp_path):
    (tmp_path / "ffhq").symlink_to(pictures)
    (tmp_path / "ffhqtrain.txt").write_text("".join(f"{index:02d}.png\n" for index in range(20)))
    (tmp_path / "ffhqvalidation.txt").write_text("21.png\n20.png\n")
    images = find_images(options(data=tmp_path / "ffhq").resolved(), WORLD)
    assert len(images.training) == 20 and [path.name for path in images.validation.paths] == ["21.png", "20.png"]
    config = {"options": images.options.as_json(), "data": images.description}
    assert _held_out(config, None) == images.validation.paths  # what the report measures on
    named = find_images(options(data=tmp_path / "ffhq", validation=pictures).resolved(), WORLD)
    assert len(named.training) == len(named.validation) == 24


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("imagenet", RandomCrop(32, 32)),
        ("ffhq", RandomResizedCrop(32)),
        ("celebahq", CenterCrop(32, 32)),
        ("lsun", CenterCrop(32, 32)),
    ],
)
def test_preprocessing_by_name(pictures, options, name, crop):
    """Whatever the recipe: here the small one, which resizes to 512 pixels and does not enlarge."""
    asked = options(preprocessing=name, recipe="small", resize=None)
    images = find_images(asked.resolved(), WORLD)
    assert images.training.crop == crop and images.options.preprocessing is None
    again = dataclasses.replace(images.options, resume=True)
    assert again.resolved() == again


def test_preprocessing_excludes_crop_and_resize(pictures):
    for other in ({"crop": "random"}, {"resize": 64}):
        with pytest.raises(ValueError, match="preprocessing: give either preprocessing or"):
            TokenizerTraining(data=pictures, preprocessing="ffhq", **other)


def test_fast_jpeg_reaches_the_reader(pictures, options):
    assert find_images(options(fast_jpeg=True).resolved(), WORLD).training.fast_jpeg
    assert not find_images(options().resolved(), WORLD).training.fast_jpeg
