import re
import sys

import pytest

from dqcore.training.log import MetricsLog, read_metrics
from dqcore.training.schedule import LearningRate


def test_log_drops_rows_after_the_step_it_resumes_at(tmp_path, capfd):
    with MetricsLog(tmp_path, resume_at=0, length=LearningRate(1.0, 0, 9)) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    seen = []
    with MetricsLog(tmp_path, resume_at=2, length=LearningRate(1.0, 0, 9), progress=seen.append) as log:
        log.write({"step": 3, "loss": 7.0})
    assert seen == [{"step": 3, "loss": 7.0}]
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 7.0]
    assert capfd.readouterr() == ("", "")


def test_progress_bar_on_a_terminal_only(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with MetricsLog(tmp_path, resume_at=0, length=LearningRate(1.0, 0, 2)) as log:
        log.write({"step": 1, "loss": 0.25, "fine_ratio": 0.5, "images_per_second": 3.0})
        log.write({"step": 1, "val_psnr": 21.5})
        log.advance(2, 0.5)
    out, err = capfd.readouterr()
    err = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err)
    assert out == "" and "loss 0.2500" in err and "held-out PSNR 21.50 dB" in err and "2/2" in err


def test_tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, resume_at=0, length=LearningRate(1.0, 0, 2), tensorboard=True) as log:
        log.write({"step": 1, "loss": 0.5, "ratios": [0.5, 0.5]})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5)]


def test_damaged_rows_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    for line in ("3", "[]", '{"loss": 1}', '{"step": "x"}'):
        path.write_text(f'{{"step": 1}}\n{line}\n')
        with pytest.raises(ValueError, match="damaged, expected rows with a step"):
            read_metrics(path)
