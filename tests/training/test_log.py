import re
import sys

import pytest
import torch
from PIL import Image

from dqcore.data.images import image_to_tensor, read_image
from dqcore.training.log import KEPT_PICTURES, MetricsLog, read_metrics, read_pictures
from dqcore.training.schedule import LearningRate, TimedLearningRate
from dqcore.training.status import Status, peak_memory, read_status, seconds_left


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


def test_tensorboard_events_after_the_step_it_resumes_at_are_dropped(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume_at, steps in ((0, (1, 2, 3)), (1, (2,))):
        with MetricsLog(tmp_path, resume_at=resume_at, length=LearningRate(1.0, 0, 9), tensorboard=True) as log:
            for step in steps:
                log.write({"step": step, "loss": float(step + resume_at)})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 3.0)]


def test_pictures_and_status_while_it_runs(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    status = Status(2, 40, 12.5, 1.5, 76.0)
    with MetricsLog(tmp_path, resume_at=0, length=LearningRate(1.0, 0, 40), tensorboard=True) as log:
        log.tell(status)
        for step in range(1, 40):
            log.show(step, torch.full((3, 8, 12), step / 40), "reconstructions")
    kept = read_pictures(tmp_path)
    steps = [step for step, _ in kept]
    assert steps[0] == 1 and steps[-1] == 39 and steps == sorted(steps) and 6 <= len(steps) <= KEPT_PICTURES
    assert image_to_tensor(read_image(kept[-1][1])).mean() == pytest.approx(39 / 40, abs=1 / 127)
    assert read_status(tmp_path) == status
    assert str(status) == "step 2 of 40, 12.5 images a second, at most 1.5 GiB of memory, about 1 min 16 s to go"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Scalars("seconds_left")[0].value == 76 and events.Scalars("memory_gib")[0].step == 2
    assert (events.Images("reconstructions")[-1].step, events.Images("reconstructions")[-1].width) == (39, 12)


def test_pictures_of_others_are_left_alone(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "00000001.png")
    assert read_pictures(tmp_path) == [] and read_pictures(tmp_path / "gone") == []
    fields = '{"step": 2, "total": 4, "images_per_second": %s, "memory_gib": 1.0, "seconds_left": 0.0}'
    for text in ("[]", fields % "null", fields % ("9" * 400), fields % "{}"):
        (tmp_path / "status.json").write_text(text)
        assert read_status(tmp_path) is None
    (tmp_path / "status.json").write_text(fields % "5")
    assert read_status(tmp_path) is not None


def test_how_long_a_run_still_takes():
    assert seconds_left(LearningRate(1.0, 0, 10), 4, 99.0, 0.5) == 3.0
    assert seconds_left(TimedLearningRate(1.0, 0, 60.0), 4, 50.0, 0.5) == 10.0
    assert peak_memory(torch.device("cpu")) > 0.05  # torch alone takes more


def test_damaged_rows_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step": 2, "lo\n')  # the line is whole, so no killed run left it
    with pytest.raises(ValueError, match="in line 2"):
        read_metrics(path)
    for line in ("3", "[]", '{"loss": 1}', '{"step": "x"}', '{"step": true}', '{"step": 0}', '{"step": 2, "l'):
        path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
        with pytest.raises(ValueError, match=r"damaged, expected rows with a step.*in line 2"):
            read_metrics(path)


def test_a_run_with_damaged_rows_is_not_resumed_and_keeps_them(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\x00p": 2}\n{"step": 3}\n')
    before = path.read_bytes()
    with pytest.raises(ValueError, match="damaged"):
        MetricsLog(tmp_path, resume_at=3, length=LearningRate(1.0, 0, 9))
    assert path.read_bytes() == before


def test_pictures_of_steps_that_are_done_anew_are_removed(tmp_path):
    with MetricsLog(tmp_path, resume_at=0, length=LearningRate(1.0, 0, 9), progress=lambda row: None) as log:
        for step in (2, 4, 6):
            log.show(step, torch.zeros(3, 8, 12), "reconstructions")
    (tmp_path / "pictures" / "00000007.png").write_bytes(b"somebody else's")
    for resume_at, steps in ((4, [2, 4]), (0, [])):
        with MetricsLog(tmp_path, resume_at=resume_at, length=LearningRate(1.0, 0, 9), progress=lambda row: None):
            assert [step for step, _ in read_pictures(tmp_path)] == steps
    assert (tmp_path / "pictures" / "00000007.png").is_file()
