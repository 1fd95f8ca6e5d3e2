"""What the lines of a training run say."""

import logging

import pytest

from dqcore.training import lines
from dqcore.training.lines import EvenLines

ROW = {"step": 7, "loss": 1.0, "images_per_second": 9.54}


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, to be set."""
    now = [0.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: now[0])
    return now


def said(caplog):
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


@pytest.mark.parametrize("speed, text", ((0.123, "0.12"), (9.54, "9.5"), (10.0, "10"), (123.4, "123")))
def test_a_speed_has_two_digits_or_none_behind_the_point(clock, caplog, speed, text):
    shown = EvenLines(10)
    shown.show(ROW | {"images_per_second": speed, "fine_ratio": 0.256})
    with caplog.at_level(logging.INFO, "dqcore"):
        shown.move(3, 0.3)
    (line,) = said(caplog)
    assert line.startswith(f"step     3 of 10, 30 %: loss 1.0000  fine 0.26  {text} images/s")


def test_lines_come_at_even_times_that_grow_with_the_run(clock, caplog):
    shown = EvenLines(1000)
    with caplog.at_level(logging.INFO, "dqcore"):
        shown.move(1, 0.001)
        assert said(caplog) == []  # there are no numbers yet
        shown.show(ROW)
        shown.move(2, 0.002)
        assert len(said(caplog)) == 1
        clock[0] = lines.LINE_SECONDS - 1
        shown.move(3, 0.003)
        assert said(caplog) == []
        clock[0] = start = 1000.0 * lines.LINE_SECONDS
        shown.move(4, 0.004)
        assert len(said(caplog)) == 1
        clock[0] = start * 1.049
        shown.move(5, 0.005)
        assert said(caplog) == []
        clock[0] = start * 1.05
        shown.move(6, 1.2)
        (line,) = said(caplog)
        assert line == "step     6 of 1000, 100 %"


def test_numbers_are_not_told_again_as_those_of_a_later_step(clock, caplog):
    """Step 10 had the loss of step 1 once, and step 999 of 1000 was at 100 %."""
    shown = EvenLines(1000)
    shown.show(ROW)
    with caplog.at_level(logging.INFO, "dqcore"):
        for clock[0], step in ((0.0, 7), (100.0, 500), (200.0, 999), (300.0, 1000)):
            if step == 999:
                shown.show(ROW | {"step": 998, "loss": 0.5})
            shown.move(step, step / 1000)
    assert said(caplog) == [
        "step     7 of 1000,  1 %: loss 1.0000  9.5 images/s",
        "step   500 of 1000, 50 %: about 1 min 41 s left",
        "step   999 of 1000, 99 %: loss 0.5000  9.5 images/s  about 0 s left",
        "step  1000 of 1000, 100 %",
    ]


def test_a_timed_run_says_how_many_steps_it_will_make_after_a_fiftieth(clock, caplog):
    shown = EvenLines(None)
    shown.show(ROW)
    with caplog.at_level(logging.INFO, "dqcore"):
        shown.move(1, 0.0199)
        clock[0] = 1e6
        shown.move(2, 0.02)
    first, second = said(caplog)
    assert first.startswith("step     1,  2 %: ") and second.startswith("step     2 of about 100,  2 %: ")


@pytest.mark.parametrize(
    "row, text",
    (
        ({"val_psnr": 21.456}, "held-out PSNR 21.46 dB"),
        ({"val_bits_per_image": 99.6}, "held-out 100 bits an image"),
        ({"val_bits_per_image": 99.6, "val_loss": 0.5}, "held-out loss 0.5000, 100 bits an image"),
    ),
)
@pytest.mark.parametrize("total, of", ((None, ""), (20, " of 20")))
def test_a_validation_is_a_line_at_once(clock, caplog, row, text, total, of):
    with caplog.at_level(logging.INFO, "dqcore"):
        EvenLines(total).show({"step": 5, **row})
    assert said(caplog) == [f"step     5{of}: {text}"]
