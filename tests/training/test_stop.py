"""A signal lets the present step finish, saves, and says how to go on; a second one ends the process at once."""

import json
import os
import signal
import time

import processes
import pytest
import torch

from dqcore.cli import main
from dqcore.training import StoppedError, train_tokenizer
from dqcore.training.state import read_state
from dqcore.training.stop import StopSignals

TRAIN = ["train", "tokenizer", "--recipe", "small", "--steps", "8", "--batch-size", "4", "--image-size", "32"]


def _numbers(rows):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def _signal_at(step, number):
    return lambda row: os.kill(os.getpid(), number) if row["step"] == step and "loss" in row else None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_saved_and_resumes_to_the_same_bits(tiny, options, tmp_path, number, capfd):
    before = signal.getsignal(signal.SIGTERM)
    whole = train_tokenizer(options(out=tmp_path / "whole"), model=tiny(), progress=lambda row: None)
    with pytest.raises(StoppedError, match="stopped after step 5; model and checkpoint are in") as stop:
        train_tokenizer(options(), model=tiny(), progress=_signal_at(4, number))
    assert stop.value.exit_code == 128 + number and stop.value.step == 5
    assert "finishing this step" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_state(options().out / "checkpoint.pt")["step"] == 5
    assert (options().out / "model" / "model.safetensors").is_file()
    run = train_tokenizer(options(resume=True), model=tiny(), progress=lambda row: None)
    assert _numbers(run.metrics) == _numbers(whole.metrics)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def test_a_signal_in_the_last_step_changes_nothing(tiny, options):
    run = train_tokenizer(options(), model=tiny(), progress=_signal_at(8, signal.SIGINT))
    assert run.metrics[-1]["step"] == 8 and "val_psnr" in run.metrics[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_line_names_the_line_that_resumes(pictures, tmp_path, monkeypatch, capfd, number, code):
    from dqcore.training import log

    write = log.MetricsLog.write
    noting = _signal_at(1, number)
    monkeypatch.setattr(log.MetricsLog, "write", lambda self, row: write(self, row) or noting(row))
    out = tmp_path / "run"
    assert main([*TRAIN, "--data", str(pictures), "--out", str(out)]) == code
    err = capfd.readouterr().err
    assert f"stopped after step 2; model and checkpoint are in {out}; " in err
    line = err.partition("dqcore train tokenizer")[2].partition(" goes on")[0].split()
    monkeypatch.setattr(log.MetricsLog, "write", write)
    assert main(["train", "tokenizer", *line]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 8 and json.loads((out / "config.json").read_text())["options"]["batch_size"] == 4
    capfd.readouterr()


@pytest.mark.parametrize("kept", [False, True])
def test_an_interruption_before_the_first_step_says_what_is_kept(pictures, tmp_path, monkeypatch, capfd, kept):
    out = tmp_path / "run"
    line = [*TRAIN, "--data", str(pictures), "--out", str(out)]

    def interrupt(*_):
        if kept:
            out.mkdir(exist_ok=True)
            (out / "checkpoint.pt").touch()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr("dqcore.training.tokenizer.run.fit_router", interrupt)
    assert main(line) == 130
    words = f"the last checkpoint is in {out}; dqcore train tokenizer --resume --out {out} goes on"
    if not kept:
        words = f"before the first step, nothing is trained yet; the same line starts again: dqcore {' '.join(line)}"
    assert words in capfd.readouterr().err


@pytest.mark.slow
def test_the_second_signal_ends_the_process_at_once():
    script = (
        "import os, signal, time\nfrom dqcore.files import signals\nfrom dqcore.training.stop import StopSignals\n"
        "signals.TOGETHER = 0\n"
        "with StopSignals() as signals:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    assert signals.received == signal.SIGINT\n"
        "    print('on', flush=True)\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
    )
    code, out, _ = processes.run(script)
    assert code == -signal.SIGTERM and out == "on\n"


def test_a_signal_that_comes_twice_is_one():
    """As to a process of ``torchrun`` in a job that is told to end."""
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGTERM


def test_nothing_is_changed_outside():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        assert signal.getsignal(signal.SIGINT) is not before and signals.received == 0
    assert signal.getsignal(signal.SIGINT) is before
