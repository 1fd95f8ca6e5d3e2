import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest

from dqcore.report.axis import Axis, tick_text
from dqcore.report.charts import prior_charts, tokenizer_charts
from dqcore.report.curves import Series, bar_chart, line_chart


def lines(svg):
    root = ElementTree.fromstring(svg)
    return [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in root.iter("polyline")]


def ticks(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter("text") if element.get("class") == "tick"]


def test_points_lie_where_they_should():
    svg = line_chart([Series("loss", [(0, 0.0), (50, 1.0), (100, 0.5)])], label="loss")
    ((a, b, c),) = lines(svg)
    grid = [float(line.get("y1")) for line in ElementTree.fromstring(svg).iter("line")]
    assert (a[1], b[1]) == (max(grid), min(grid))
    assert ticks(svg)[0] == "0" and ticks(svg)[len(grid) - 1] == "1"
    assert max(grid) - min(grid) == pytest.approx(170)  # of 240, without the margins
    assert a[0] < b[0] < c[0]
    assert a[1] > c[1] > b[1]  # up is a smaller y
    assert c[1] - b[1] == pytest.approx(a[1] - c[1], abs=0.2)


def test_logarithmic_axis_spaces_decades_evenly():
    points = [(1, 1e-4), (2, 1e-3), (3, 1e-2), (4, 0.0), (5, float("nan"))]
    ((a, b, c),) = lines(line_chart([Series("", points)], label="budget", log=True))
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)


def test_target_line_and_names():
    svg = line_chart([Series("fine < coarse", [(1, 0.3), (9, 0.3)])], label="ratio", target=0.5)
    root = ElementTree.fromstring(svg)
    (target,) = [line for line in root.iter("line") if line.get("class") == "target"]
    ((first, _),) = lines(svg)
    assert float(target.get("y1")) < first[1]
    assert "fine < coarse" in "".join(root.itertext())


def test_ticks_are_round_numbers():
    assert ticks(line_chart([Series("", [(0, 0.13), (1000, 0.41)])], label="x"))[:4] == ["0.1", "0.2", "0.3", "0.4"]


@pytest.mark.parametrize("low", [-12_500.0, -3.0, 0.0, 0.1234, 22.001, 123.4, 999.93, 1000.0, 2500.1, 99_990.0])
@pytest.mark.parametrize("span", [1e-6, 2e-4, 0.0039, 0.1, 0.9, 1.1, 10.0, 70.0, 1003.0, 90_000.0])
def test_every_number_beside_the_axis_is_that_of_its_line(low, span):
    axis = Axis.around([low, low + span])
    texts = [tick_text(tick) for tick in axis.ticks]
    assert len(set(texts)) == len(texts) >= 2
    assert [float(text.replace(",", "")) for text in texts] == pytest.approx(axis.ticks, rel=1e-12, abs=1e-12)
    assert axis.low <= low + 1e-6 and axis.high >= low + span - 1e-6


def test_numbers_at_the_edge_are_whole():
    svg = line_chart([Series("", [(0, 0.0), (10_000, 20_000.0)])], label="x")
    assert ticks(svg)[-1] == "10,000" and "20,000" in ticks(svg)
    *_, inner, last = [text for text in ElementTree.fromstring(svg).iter("text") if text.get("class") == "tick"]
    assert (inner.get("text-anchor"), last.get("text-anchor")) == ("middle", "end")


def test_a_constant_still_has_an_axis():
    assert lines(line_chart([Series("", [(1, 2.0)])], label="x"))


def test_a_run_whose_losses_are_not_finite_has_no_chart_of_them():
    assert prior_charts([{"step": 1, "loss": float("nan"), "content_loss": float("inf"), "position_loss": 0.0}]) == []


def test_validation_in_training_is_of_whole_photos_whatever_the_report_measures():
    central = SimpleNamespace(protocol="central 64x64 pixels", code_counts=(2, 1))
    chart = tokenizer_charts([{"step": 1, "val_psnr": 20.0}], central, None)[0]
    assert chart["remark"] == "on validation images, native size, 8-bit; last: 20.00 dB"


def test_the_loss_is_not_called_absolute_where_it_may_be_squared():
    whole = SimpleNamespace(protocol="native size, 8-bit", code_counts=(2, 1))
    rows = [{"step": step, "loss": 1.0, "reconstruction_loss": 0.5} for step in (1, 2)]
    chart = tokenizer_charts(rows, whole, None)[0]
    assert chart["remark"] == "of reconstruction, and of all terms, on training batches"


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one point"):
        line_chart([Series("", [(1, float("nan"))])], label="x")


def test_bars_are_as_high_as_their_values():
    root = ElementTree.fromstring(bar_chart([4, 2, 0], label="use", x_label="codes"))
    (path,) = list(root.iter("path"))
    bars = [bar for bar in path.get("d").split("z") if bar]
    tops = [float(bar.split("V")[1].split("h")[0]) for bar in bars]
    floor = float(bars[0].split(",")[1].split("V")[0])
    assert len(bars) == 2
    assert floor - tops[0] == pytest.approx(2 * (floor - tops[1]), abs=0.1)


def test_axes_have_names():
    svg = line_chart(
        [Series("a", [(0, 1), (1, 2)], dots=True)], label="x", x_label="bits per pixel", y_label="PSNR, dB"
    )
    names = [element.text for element in ElementTree.fromstring(svg).iter("text") if element.get("class") == "axis"]
    assert names == ["bits per pixel", "PSNR, dB"] and svg.count("<circle") == 2
