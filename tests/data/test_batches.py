import numpy as np
import pytest
import torch
from PIL import Image

from dqcore.data import batches as module
from dqcore.data.batches import Crops, StepSampler, batch_loader, item_loader
from dqcore.data.crops import RandomCrop
from dqcore.data.images import BrokenImageError


@pytest.fixture
def paths(tmp_path):
    gen = np.random.default_rng(0)
    for index in range(7):
        Image.fromarray(gen.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    return sorted(tmp_path.iterdir())


def _batches(paths, *, workers=0, in_memory=False, start=0, stop=6, size=2):
    crops = Crops(paths, RandomCrop(16, 18), seed=3, in_memory=in_memory)
    sampler = StepSampler(len(paths), size, seed=3, start=start, stop=stop)
    return list(batch_loader(crops, sampler, workers=workers, pin=False))


def test_an_epoch_holds_each_image_once_and_epochs_differ():
    keys = list(StepSampler(7, 2, seed=0, start=0, stop=6))
    epochs = [[index for batch in keys[first : first + 3] for _, index in batch] for first in (0, 3)]
    assert [len(set(order)) for order in epochs] == [6, 6] and epochs[0] != epochs[1]
    assert {epoch for batch in keys[:3] for epoch, _ in batch} == {0}
    assert list(StepSampler(7, 2, seed=1, start=0, stop=6)) != keys
    assert list(StepSampler(7, 2, seed=0, start=4, stop=6)) == keys[4:]


def test_processes_share_the_global_batch():
    together = list(StepSampler(9, 4, seed=0, start=0, stop=5))
    parts = [list(StepSampler(9, 2, seed=0, start=0, stop=5, rank=rank, processes=2)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == together


def test_batch_larger_than_the_folder():
    with pytest.raises(ValueError, match="batch_size: 8 is more than the 7 images"):
        StepSampler(7, 8, seed=0, start=0, stop=1)
    with pytest.raises(ValueError, match="4 on each of 2 processes"):
        StepSampler(7, 4, seed=0, start=0, stop=1, processes=2)


def test_batches_do_not_depend_on_workers_memory_or_where_they_start(paths):
    state = torch.get_rng_state()
    expected = _batches(paths)
    assert expected[0].images.shape == (2, 3, 16, 16) and expected[0].images.dtype == torch.uint8
    assert not torch.equal(expected[0].images, expected[3].images)
    for other in (_batches(paths, workers=2), _batches(paths, in_memory=True)):
        assert [batch.paths for batch in other] == [batch.paths for batch in expected]
        assert all(torch.equal(a.images, b.images) for a, b in zip(other, expected, strict=True))
    tail = _batches(paths, start=4)
    assert torch.equal(tail[0].images, expected[4].images) and len(tail) == 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_broken_image_is_named_and_replaced(paths, in_memory):
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    whole = _batches(paths, in_memory=in_memory, stop=3)
    assert all(batch.images.shape[0] == 2 for batch in whole)
    assert str(paths[3]) not in {path for batch in whole for path in batch.paths}
    broken = [reason for batch in _batches(paths, in_memory=in_memory, stop=6) for reason in batch.broken]
    assert broken and all(str(paths[3]) in reason for reason in broken)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_folder_of_broken_images_is_an_error(paths, in_memory):
    for path in paths:
        path.write_text("no image")
    with pytest.raises(BrokenImageError, match="7 files in a row cannot be read"):
        _batches(paths, in_memory=in_memory)


def test_memory_has_a_limit(paths, monkeypatch):
    monkeypatch.setattr(module, "MEMORY_LIMIT", 3 * 21 * 18)
    with pytest.raises(ValueError, match="in_memory: the images need more"):
        _batches(paths, in_memory=True)


def test_images_are_kept_while_there_is_room(paths, monkeypatch):
    read, decode = [], module.read_prepared
    monkeypatch.setattr(
        module, "read_prepared", lambda path, *args, **named: read.append(path) or decode(path, *args, **named)
    )
    wanted = [sample.image for sample in map(Crops(paths, RandomCrop(16, 18)).__getitem__, [(0, 0), (0, 1), (0, 2)])]
    size = 3 * 18 * 21  # of a prepared image
    read.clear()
    crops = Crops(paths, RandomCrop(16, 18), keep=2 * size + size // 2)
    for _ in range(3):
        assert all(torch.equal(crops[0, index].image, wanted[index]) for index in range(3))
    assert read == [*paths[:3], paths[2], paths[2]]


def test_loading_items_takes_no_random_number():
    state = torch.get_rng_state()
    assert list(item_loader([5, 6, 7], 0)) == [5, 6, 7]
    assert torch.equal(torch.get_rng_state(), state)
