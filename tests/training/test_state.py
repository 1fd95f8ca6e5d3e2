import random
import resource
from types import SimpleNamespace

import pytest
import torch

from dqcore.distributed import World
from dqcore.training.checkpoint import capture
from dqcore.training.state import read_state, write_state


def test_states_are_read_without_running_code(tmp_path):
    write_state(tmp_path / "good.pt", {"x": torch.arange(3), "names": ["a"]})
    assert read_state(tmp_path / "good.pt")["x"].tolist() == [0, 1, 2]
    torch.save({"path": tmp_path}, tmp_path / "pickle.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:-100])
    for name in ("pickle.pt", "torn.pt"):
        with pytest.raises(ValueError, match=f"{name}: not a checkpoint"):
            read_state(tmp_path / name)


def test_every_damaged_bit_is_noticed(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_state(path, {"x": torch.arange(300), "names": ["a"], "step": 3})
    assert torch.load(path, weights_only=True)["step"] == read_state(path)["step"] == 3
    data, rng = path.read_bytes(), random.Random(0)
    places = [0, len(data) - 1, len(data) - 40, len(data) - 70, *(rng.randrange(len(data)) for _ in range(60))]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint\.pt: not a checkpoint"):
            read_state(path)


def test_states_of_earlier_versions_are_read_and_checked(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"x": torch.arange(3000)}, path)
    assert read_state(path)["x"].tolist() == list(range(3000))
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(3000).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not a checkpoint"):
        read_state(path)


def test_a_full_disk_is_one_error(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written.*checkpoint\.pt"):
            write_state(tmp_path / "checkpoint.pt", {"x": torch.zeros(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_knows_what_every_process_could_not_read():
    class Two(World):
        def gather(self, value):
            return [value, ["b", "c"] if value == ["a", "b"] else value]

    step = SimpleNamespace(sharded=False, state_dict=dict)
    assert capture(step, Two(0, 2, torch.device("cpu")), 3, {"b", "a"})["broken"] == ["a", "b", "c"]
