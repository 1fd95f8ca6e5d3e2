import json

import pytest
import torch

import dqcore
from dqcore.data.codes import CachedCodes, read_codes
from dqcore.data.labels import folder_labels
from dqcore.errors import InputError
from dqcore.files.sealed import write_sealed


def test_folders_of_codes(tmp_path):
    """The layout that ``dqcore encode`` writes."""
    from safetensors.torch import save_file

    grain = torch.randint(0, 2, (4, 2, 2))
    codes = torch.randint(0, 16, (4, 2, 2)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    entries = []
    for number in range(4):
        shard = f"codes-{number // 2:05d}.safetensors"
        entries.append({"name": f"{'ab'[number % 2]}/{number}.png", "shard": shard})
    for first in (0, 2):
        tensors = {f"{i}.codes": codes[i].int() for i in (first, first + 1)}
        tensors |= {f"{i}.grain": grain[i].to(torch.uint8) for i in (first, first + 1)}
        save_file(tensors, tmp_path / entries[first]["shard"])
    index = {"tokenizer": "abc", "strides": [16, 8], "codebook_size": 16, "images": entries}
    (tmp_path / "index.json").write_text(json.dumps(index))
    cached = read_codes(tmp_path, classes=True)
    sequence, labels = cached.batch(torch.tensor([2, 0]))
    assert sequence == dqcore.pack_codes(codes[[2, 0]], grain[[2, 0]], num_granularities=2)
    assert labels.tolist() == [0, 0]
    assert cached.labels.tolist() == [0, 1, 0, 1] and cached.classes == ("a", "b")


def test_folders_that_hold_no_codes(tmp_path):
    with pytest.raises(FileNotFoundError, match="dqcore encode writes one"):
        read_codes(tmp_path)
    for text in ("{", "[]", '{"images": []}'):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match="expected an index of codes"):
            read_codes(tmp_path)
    write_sealed(tmp_path / "index.json", {"format": "dqc", "images": []})
    with pytest.raises(ValueError, match=r"holds .dqc files, expected shards"):
        read_codes(tmp_path)


def test_images_of_two_sizes():
    maps = [(torch.zeros(1, 2 * n, 2 * n, dtype=torch.int64), torch.zeros(1, n, n, dtype=torch.int64)) for n in (1, 2)]
    about = {"num_granularities": 2, "codebook_size": 16}
    with pytest.raises(ValueError, match="codes: expected images of one size"):
        CachedCodes.of_maps(maps, [-1, -1], **about)
    with pytest.raises(ValueError, match="of no image"):
        CachedCodes.of_maps([], [], **about)


def test_cached_codes_survive_their_state():
    grain = torch.randint(0, 2, (3, 2, 2))
    codes = torch.randint(0, 16, (3, 4, 4))
    about = {"num_granularities": 2, "codebook_size": 16, "tokenizer": "x", "classes": ("a",)}
    cached = CachedCodes.of_maps([(codes, grain)], [0, 0, 0], **about)
    back = CachedCodes.of_state(cached.to_state())
    assert back.batch(torch.tensor([1]))[0] == cached.batch(torch.tensor([1]))[0]
    assert (back.classes, back.region_grid) == (("a",), (2, 2))


def test_labels_are_folders():
    assert folder_labels(["x/1.png", "a/b/2.png", "x/3.png"], True) == ([1, 0, 1], ("a/b", "x"))
    assert folder_labels(["1.png"], False) == ([-1], ())
    with pytest.raises(ValueError, match=r"classes: expected a folder for each class, 1\.png lies in none"):
        folder_labels(["x/0.png", "1.png"], True)


@pytest.mark.parametrize("code", (16, -1, 2**31, 2**32 + 3))
def test_codes_that_are_not_in_the_codebook(code):
    maps = [(torch.full((1, 4, 4), code), torch.zeros(1, 2, 2, dtype=torch.int64))]
    with pytest.raises(InputError, match=r"^codes: expected values in \[0, 16\), got"):
        CachedCodes.of_maps(maps, [-1], num_granularities=2, codebook_size=16)
