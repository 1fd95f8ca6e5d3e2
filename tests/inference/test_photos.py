import pytest
from PIL import Image

from dqcore.inference.load import hash_files
from dqcore.inference.photos import PhotoBatches, list_photos
from dqcore.inference.protocol import Protocol


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
    images = PhotoBatches(files, Protocol(16, 20), batch_size=2, progress=lambda *numbers: seen.append(numbers))
    batches = list(images)
    assert [batch.shape for batch in batches] == [(2, 3, 16, 16), (2, 3, 16, 16)]
    assert [reds(batch) for batch in batches] == [[0, 100], [150, 200]]
    assert images.good == [files[0], *files[2:]]
    assert len(images.broken) == 1 and "1.png" in images.broken[0]
    assert seen == [(1, 5), (3, 5), (5, 5)]


def test_photos_of_another_size_come_alone(files, monkeypatch):
    Image.new("RGB", (30, 40)).save(files[1])
    assert [len(batch) for batch in PhotoBatches(files)] == [1, 1, 3]
    monkeypatch.setattr("dqcore.inference.photos.BATCH_PIXELS", 2 * 40 * 30)
    assert [len(batch) for batch in PhotoBatches(files)] == [1, 1, 2, 1]


def test_files_folders_and_lists_each_once(files, tmp_path):
    (tmp_path / "list.txt").write_text("3.png\n0.png\n")
    assert list_photos([files[2], tmp_path / "list.txt", tmp_path]) == [
        files[2],
        files[3],
        files[0],
        files[1],
        files[4],
    ]


def test_none_can_be_read(files):
    with pytest.raises(ValueError, match=r"folder: none of its 1 images can be read, the first: .*1\.png"):
        list(PhotoBatches(files[1:2], argument="folder"))


def test_the_hash_is_of_contents_in_their_order(files):
    assert hash_files(files) == hash_files(list(files)) != hash_files(files[::-1])
    before = hash_files(files)
    files[1].write_bytes(b"another")
    assert hash_files(files) != before
    assert len(before) == 16
