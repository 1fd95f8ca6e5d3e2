import json
import os
import re
import sys

import pytest
import torch

from dqcore.files import write_atomically, write_json
from dqcore.training.log import MetricsLog, read_metrics
from dqcore.training.state import read_state, write_state


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "state.bin"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["state.bin"]


def test_data_is_flushed_before_the_rename(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), replace(*paths)))
    write_json(tmp_path / "a.json", {"x": [1, 2]})
    assert order == ["fsync", "rename", "fsync"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2]}


def test_states_are_read_without_running_code(tmp_path):
    write_state(tmp_path / "good.pt", {"x": torch.arange(3), "names": ["a"]})
    assert read_state(tmp_path / "good.pt")["x"].tolist() == [0, 1, 2]
    torch.save({"path": tmp_path}, tmp_path / "pickle.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:-100])
    for name in ("pickle.pt", "torn.pt"):
        with pytest.raises(ValueError, match=f"{name}: not a checkpoint"):
            read_state(tmp_path / name)


def test_log_drops_rows_after_the_step_it_resumes_at(tmp_path, capfd):
    with MetricsLog(tmp_path, resume_at=0, total=9) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    seen = []
    with MetricsLog(tmp_path, resume_at=2, total=9, progress=seen.append) as log:
        log.write({"step": 3, "loss": 7.0})
    assert seen == [{"step": 3, "loss": 7.0}]
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 7.0]
    assert capfd.readouterr() == ("", "")


def test_progress_bar_on_a_terminal_only(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with MetricsLog(tmp_path, resume_at=0, total=2) as log:
        log.write({"step": 1, "loss": 0.25, "fine_ratio": 0.5, "images_per_second": 3.0})
        log.write({"step": 1, "val_psnr": 21.5})
        log.advance(2)
    out, err = capfd.readouterr()
    err = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err)
    assert out == "" and "loss 0.2500" in err and "validation PSNR 21.50 dB" in err and "2/2" in err


def test_tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, resume_at=0, total=2, tensorboard=True) as log:
        log.write({"step": 1, "loss": 0.5, "ratios": [0.5, 0.5]})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5)]
