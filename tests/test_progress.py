import io
import logging
import re
import subprocess
import sys
import time

from dqcore.progress import (
    CountLines,
    ask,
    counted,
    duration,
    progress_bar,
    shown_log,
    time_left,
)
from dqcore.training.lines import EvenLines, TrainingBar


def _on_a_terminal(monkeypatch):
    """Not a fixture: pytest captures stderr anew when the test begins."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def _words(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_nothing_is_shown_without_a_terminal(capfd):
    with progress_bar() as bar:
        bar.advance(bar.add_task("encode", total=2))
    assert capfd.readouterr() == ("", "")


def test_a_bar_names_its_task(monkeypatch, capfd):
    _on_a_terminal(monkeypatch)
    with progress_bar() as bar:
        bar.update(bar.add_task("evaluate runs/[bold]1[/b]", total=2), completed=2)
    out, err = capfd.readouterr()
    assert out == "" and "evaluate runs/[bold]1[/b]" in _words(err) and "2/2" in _words(err)


def test_a_bar_says_what_is_left_from_the_first_item_on(monkeypatch, capfd):
    _on_a_terminal(monkeypatch)
    with progress_bar() as bar:
        task = bar.add_task("evaluate", total=None, completed=2)  # two were there already
        bar.get_time = bar._tasks[task]._get_time = lambda: bar._tasks[task].start_time + 60
        bar.update(task, completed=3, total=5)
    assert "3/5 about 2 min left" in " ".join(_words(capfd.readouterr()[1]).split())


def test_time_left():
    assert time_left(1, 8, 60) == "about 7 min left" and time_left(4, 8, 60) == "about 1 min left"
    assert [time_left(0, 8, 60), time_left(8, 8, 60), time_left(1, None, 60)] == [""] * 3


def test_the_bar_of_a_prior(monkeypatch, capfd):
    _on_a_terminal(monkeypatch)
    bar = TrainingBar(0, 4)
    bar.show({"step": 2, "loss": 1.5, "images_per_second": 7.0})
    bar.show({"step": 2, "val_loss": 1.25, "val_bits_per_image": 900.4})
    bar.move(3)
    bar.stop()
    out, err = capfd.readouterr()
    assert out == "" and "loss 1.5000  7 images/s" in _words(err) and "3/4" in _words(err)
    assert "step 2: held-out loss 1.2500, 900 bits an image" in _words(err)


def test_lines_at_even_times_and_at_each_validation(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with shown_log():
        lines = EvenLines(200)
        lines.move(1, 0.005)  # nothing to show yet
        for step in range(1, 41):
            now[0] += 1.0
            lines.show({"step": step, "loss": 1 / step, "images_per_second": 30.0})
            lines.move(step, step / 200)
        lines.show({"step": 40, "val_psnr": 20.123})
        lines.show({"step": 40, "val_loss": 2.5, "val_bits_per_image": 812.6})
    assert capsys.readouterr().out.splitlines() == [
        "step     1 of 200,  0 %: loss 1.0000  30 images/s",
        "step    11 of 200,  6 %: loss 0.0909  30 images/s  about 3 min 28 s left",
        "step    21 of 200, 10 %: loss 0.0476  30 images/s  about 3 min 8 s left",
        "step    31 of 200, 16 %: loss 0.0323  30 images/s  about 2 min 55 s left",
        "step    40 of 200: held-out PSNR 20.12 dB",
        "step    40 of 200: held-out loss 2.5000, 813 bits an image",
    ]


def test_a_timed_run_corrects_how_many_steps_it_makes(monkeypatch, caplog, capfd):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    caplog.set_level("INFO", logger="dqcore")
    _on_a_terminal(monkeypatch)
    lines, bar = EvenLines(None), TrainingBar(0, 240, "seconds")  # 30 seconds were before it was resumed
    for step, seconds in ((1, 31.0), (20, 60.0), (30, 120.0)):  # the machine slows down
        now[0] = seconds - 30
        row = {"step": step, "loss": 1.0, "images_per_second": 2.0}
        bar.move(seconds)
        for shows in (lines, bar):
            shows.show(row)
        lines.move(step, seconds / 240)
    bar.stop()
    assert caplog.messages[1:] == [
        "step    20 of about 80, 25 %: loss 1.0000  2 images/s  about 3 min left",
        "step    30 of about 60, 50 %: loss 1.0000  2 images/s  about 2 min left",
    ]
    assert "120/240 seconds about 2 min left step 30 of about 60 loss" in " ".join(
        _words(capfd.readouterr()[1]).split()
    )


def test_lines_of_counted_work(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    caplog.set_level("INFO", logger="dqcore")
    lines = CountLines("encoding images", 60)
    for done in range(1, 61):
        now[0] += 1
        lines.move(done)
    assert caplog.messages[0] == "encoding images: 10 of 60, about 50 s left" and len(caplog.messages) == 5


def test_things_counted():
    assert [counted(number, "photo") for number in (0, 1, 1200)] == ["0 photos", "1 photo", "1,200 photos"]


def test_the_log_is_quiet_unless_shown(capfd):
    lines = EvenLines(None)
    lines.show({"step": 1, "val_psnr": 20.0})
    assert capfd.readouterr() == ("", "")
    with shown_log():
        logging.getLogger("dqcore.somewhere").warning("look out")
    assert capfd.readouterr() == ("warning: look out\n", "")
    assert not logging.getLogger("dqcore").handlers


def test_a_question_is_asked_of_somebody_only(monkeypatch, capfd):
    assert ask("Go on?")
    assert capfd.readouterr() == ("", "")
    _on_a_terminal(monkeypatch)
    for answer, meant in (("y\n", True), ("n\n", False), ("", False)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        assert ask("Go on?") is meant
    assert "Go on? [y/N]" in capfd.readouterr().err


def test_durations():
    told = [duration(s) for s in (0.4, 59, 60, 250, 3600, 12_000, 86_400 * 12)]
    assert told == ["0 s", "59 s", "1 min", "4 min 10 s", "1 h", "3 h 20 min", "12 days"]


def test_importing_it_loads_no_rich():
    script = "import sys; import dqcore.progress; assert 'rich' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_bar_without_a_terminal_says_lines(monkeypatch, capsys):
    moment = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    with progress_bar() as bar:
        task = bar.add_task("encoding", total=10, completed=2)
        for _ in range(8):
            bar.advance(task)
            moment[0] += 9
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "encoding: 9 of 10, about 9 s left" and len(lines) == 3
