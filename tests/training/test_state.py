import pytest
import torch

from dqcore.training.state import read_state, write_state


def test_states_are_read_without_running_code(tmp_path):
    write_state(tmp_path / "good.pt", {"x": torch.arange(3), "names": ["a"]})
    assert read_state(tmp_path / "good.pt")["x"].tolist() == [0, 1, 2]
    torch.save({"path": tmp_path}, tmp_path / "pickle.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:-100])
    for name in ("pickle.pt", "torn.pt"):
        with pytest.raises(ValueError, match=f"{name}: not a checkpoint"):
            read_state(tmp_path / name)
