import json

import pytest
import torch

from dqcore.data.shards import ShardWriter, count_known, read_index, read_shards
from dqcore.errors import InputError

ABOUT = {"tokenizer": "abc", "strides": [16, 8]}


def _maps(number):
    gen = torch.Generator().manual_seed(number)
    return torch.randint(0, 300, (4, 6), generator=gen), torch.randint(0, 2, (2, 3), generator=gen)


def _write(folder, numbers, **changes):
    writer = ShardWriter(folder, ABOUT | changes, shard_size=2)
    for number in numbers:
        if f"{number}.png" not in writer.done:
            writer.add(f"{number}.png", (30, 47), *_maps(number))
    return writer


def test_what_is_written_is_read(tmp_path):
    writer = _write(tmp_path, range(3))
    writer.skip("broken.png", "no image")
    writer.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "codes-00000.safetensors",
        "codes-00001.safetensors",
        "index.json",
    ]
    index = read_index(tmp_path)
    assert {name: index[name] for name in ABOUT} == ABOUT
    assert index["broken"] == [{"name": "broken.png", "reason": "no image"}]
    found = list(read_shards(tmp_path))
    assert [entry["name"] for entry, _, _ in found] == ["0.png", "1.png", "2.png"]
    for number, (entry, codes, grain) in enumerate(found):
        expected = _maps(number)
        assert torch.equal(codes, expected[0]) and torch.equal(grain, expected[1])
        assert codes.dtype == grain.dtype == torch.int64
        assert entry["size"] == [30, 47] and entry["num_codes"] == int((4**grain).sum())
        assert (entry["codes_shape"], entry["grain_shape"]) == ([4, 6], [2, 3])


def test_a_killed_run_continues_after_its_last_whole_shard(tmp_path):
    _write(tmp_path / "killed", range(3))  # never flushed: image 2 is lost
    assert [entry["name"] for entry, _, _ in read_shards(tmp_path / "killed")] == ["0.png", "1.png"]
    first = (tmp_path / "killed" / "codes-00000.safetensors").stat().st_mtime_ns
    for name in ("killed", "whole"):
        _write(tmp_path / name, range(5)).flush()
    assert (tmp_path / "killed" / "codes-00000.safetensors").stat().st_mtime_ns == first
    for one, other in zip(read_shards(tmp_path / "killed"), read_shards(tmp_path / "whole"), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1]) and torch.equal(one[2], other[2])


def test_only_one_shard_is_in_memory(tmp_path, monkeypatch):
    import safetensors.torch

    _write(tmp_path, range(5)).flush()
    loaded, load = [], safetensors.torch.load_file
    monkeypatch.setattr(safetensors.torch, "load_file", lambda path: loaded.append(path.name) or load(path))
    images = read_shards(tmp_path)
    next(images)
    assert loaded == ["codes-00000.safetensors"]
    assert len(list(images)) == 4 and len(loaded) == 3


def test_other_folders_are_refused(tmp_path):
    _write(tmp_path / "codes", [0]).flush()
    with pytest.raises(ValueError, match=r"holds codes of another tokenizer \(abc\)"):
        _write(tmp_path / "codes", [0], tokenizer="def")
    (tmp_path / "codes" / "index.json").write_text(json.dumps(ABOUT)[:-3])
    with pytest.raises(ValueError, match=r"index\.json cannot be read"):
        _write(tmp_path / "codes", [0])
    with pytest.raises(ValueError, match="expected an index of codes"):
        read_index(tmp_path / "codes")
    (tmp_path / "codes" / "index.json").unlink()
    with pytest.raises(ValueError, match=r"is not empty and holds no index\.json"):
        _write(tmp_path / "codes", [0])
    with pytest.raises(FileNotFoundError, match="dqcore encode writes one"):
        next(read_shards(tmp_path / "codes"))


def test_damaged_shards_and_indexes_are_one_clear_error(tmp_path):
    _write(tmp_path, range(3)).flush()
    shard, index = tmp_path / "codes-00000.safetensors", tmp_path / "index.json"
    data, text = shard.read_bytes(), index.read_text()
    for place in (3, 30, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 4
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"codes-00000\.safetensors"):
            list(read_shards(tmp_path))
    shard.write_bytes((tmp_path / "codes-00001.safetensors").read_bytes())
    with pytest.raises(ValueError, match="does not belong to its shards"):
        list(read_shards(tmp_path))
    shard.write_bytes(data)
    for old, new in (('"shard"', '"hard"'), ("4,", "5,")):
        index.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=r"index"):
            list(read_shards(tmp_path))
    index.write_text(text)
    about = read_index(tmp_path)
    about["images"][0]["codes_shape"] = [6, 4]
    with pytest.raises(ValueError, match="image 0 is not the one of the index"):
        list(read_shards(tmp_path, about))
    index.write_text('{"images": []}')
    assert read_index(tmp_path)["broken"] == []
    index.write_text('{"images": [3], "broken": []}')
    with pytest.raises(ValueError, match="no list of files"):
        list(read_shards(tmp_path))


def test_a_listed_file_that_is_gone_is_no_other_file(tmp_path):
    writer = ShardWriter(tmp_path, ABOUT, shard_size=2)
    writer.add("1.png", (30, 47), *_maps(1), "abc")
    writer.flush()
    assert count_known(read_index(tmp_path), {"1.png": "", "2.png": "def"}, tmp_path) == 1
    old = {"images": [{"name": "1.png"}]}  # of a version that kept no digest
    assert count_known(old, {"1.png": "def"}, tmp_path) == 1
    with pytest.raises(InputError, match=r"holds the codes of another 1.png"):
        count_known(read_index(tmp_path), {"1.png": "def"}, tmp_path)


@pytest.mark.parametrize("dtype", (torch.int64, torch.float32, torch.bool))
@pytest.mark.parametrize(
    "name, place, value", (("codes", 0, 2**31), ("codes", 0, -1), ("grain", 1, -1), ("grain", 1, 8))
)
def test_numbers_that_a_shard_cannot_hold_are_refused(tmp_path, name, place, value, dtype):
    """A cast would wrap them: other codes would be read than were written."""
    writer = _write(tmp_path, range(1))
    writer.skip("x.png", "no image")
    maps = list(_maps(1))
    maps[place][0, 0] = value
    maps[place] = maps[place].to(dtype)
    expected = "values in" if dtype == torch.int64 else "whole numbers, got"
    with pytest.raises(InputError, match=f"^{name}: expected {expected}"):
        writer.add("x.png", (30, 47), *maps)
    writer.add("1.png", (30, 47), *_maps(1))
    assert len(list(read_shards(tmp_path))) == 2 and len(writer.index["broken"]) == 1


def test_the_largest_numbers_of_a_shard(tmp_path):
    writer = _write(tmp_path, range(1))
    codes, grain = torch.full((4, 6), 2**31 - 1), torch.full((2, 3), 7)
    writer.add("1.png", (30, 47), codes, grain)
    _, (_, *read) = read_shards(tmp_path)
    assert torch.equal(read[0], codes) and torch.equal(read[1], grain)


def test_a_shard_takes_the_maps_of_one_image(tmp_path):
    codes, grain = _maps(0)
    for name, maps in (("codes", (codes[None], grain)), ("grain", (codes, grain[None]))):
        with pytest.raises(InputError, match=f"^{name}: expected the map of one image, got shape"):
            _write(tmp_path, []).add("x.png", (30, 47), *maps)
