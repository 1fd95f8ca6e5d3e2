import pytest
from PIL import Image

from dqcore.inference.load import ImageBatches, hash_files


@pytest.fixture
def files(tmp_path):
    """Five images of one colour each; the second is broken."""
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.new("RGB", (40, 30), (50 * number, 0, 0)).save(path)
    paths[1].write_bytes(b"no image")
    return paths


def reds(batch):
    return ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_batches_of_the_files_that_can_be_read(files):
    seen = []
    images = ImageBatches(files, 16, 20, batch_size=2, progress=lambda *numbers: seen.append(numbers))
    batches = list(images)
    assert [batch.shape for batch in batches] == [(2, 3, 16, 16), (2, 3, 16, 16)]
    assert [reds(batch) for batch in batches] == [[0, 100], [150, 200]]
    assert images.good == [files[0], *files[2:]]
    assert len(images.broken) == 1 and "1.png" in images.broken[0]
    assert seen == [(number, 5) for number in range(1, 6)]


def test_the_limit_counts_images_that_can_be_read(files):
    images = ImageBatches(files, 16, batch_size=8, limit=2)
    assert [reds(batch) for batch in images] == [[0, 100]]
    assert images.good == [files[0], files[2]]


def test_none_can_be_read(files):
    with pytest.raises(ValueError, match=r"folder: none of its 1 images can be read, the first: .*1\.png"):
        list(ImageBatches(files[1:2], 16, argument="folder"))


def test_the_hash_is_of_contents_in_their_order(files):
    assert hash_files(files) == hash_files(list(files)) != hash_files(files[::-1])
    before = hash_files(files)
    files[1].write_bytes(b"another")
    assert hash_files(files) != before
    assert len(before) == 16
