"""The page of results: rate and distortion first, tables and sentences, charts that stand alone."""

import os
from xml.etree import ElementTree

import pytest

from dqcore.errors import InputError
from dqcore.report.results import MARK, write_results

LINE = {"name": "ours & theirs", "points": [[0.02, 20.0], [0.1, 22.0]], "style": "first", "dots": True}
LABELS = {"x_label": "bits per pixel", "y_label": "PSNR, dB", "target": None, "log": False}


def summary(name="ratios", chart="rate-distortion", verdict="holds"):
    claim = {"claim": "More codes | more detail", "measured": "0.50 ± 0.01", "verdict": verdict}
    return {
        "name": name,
        "title": f"About {name}",
        "notes": ["A note."],
        "claims": [claim | {"sentence": f"More codes: 0.50 ± 0.01; {verdict}."}],
        "tables": [{"title": "All", "columns": ["arm", "PSNR"], "rows": [["a|b", "22.00 ± 0.10"]]}],
        "charts": [{"name": chart, "title": "A chart", "series": [LINE], **LABELS}],
        "protocol": {"scale": ["cpu"], "minutes of training": 3},
    }


def test_the_page_opens_with_rate_and_distortion_and_has_everything(tmp_path):
    page = tmp_path / "docs" / "results.md"
    budget = summary("budget", "budget-curve")
    budget["protocol"]["photos"] = os.fsdecode(b"caf\xe9")  # a folder's name need not be UTF-8
    write_results([budget, summary(verdict="does not hold")], page)
    text = page.read_text()
    assert text.startswith(f"{MARK}\n# Results\n\n**A chart**\n\n![A chart](results/rate-distortion.svg)\n")
    assert text.index("## About budget") < text.index("results/budget-curve.svg") < text.index("## About ratios")
    assert text.count("rate-distortion.svg") == 1
    assert "- More codes: 0.50 ± 0.01; does not hold." in text
    assert "| More codes \\| more detail | 0.50 ± 0.01 | **holds** |" in text
    assert "| arm | PSNR |\n|---|---|\n| a\\|b | 22.00 ± 0.10 |" in text
    assert "A note." in text and r"photos caf\udce9." in text and "scale cpu; minutes of training 3." in text
    for chart in ("budget-curve", "rate-distortion"):
        root = ElementTree.fromstring((page.parent / "results" / f"{chart}.svg").read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        tags = [element.tag.rpartition("}")[2] for element in root.iter()]
        assert "polyline" in tags and "style" in tags and tags.count("circle") == 2


def test_its_own_page_is_replaced_and_another_is_not(tmp_path):
    page = tmp_path / "results.md"
    write_results([summary()], page)
    write_results([summary(verdict="does not hold")], page)
    assert "**does not hold**" in page.read_text() and "**holds**" not in page.read_text()
    page.write_text("# My notes\n")
    with pytest.raises(InputError, match=r"page: .* is there already"):
        write_results([summary()], page)
    assert page.read_text() == "# My notes\n"


def test_a_name_without_an_ending_is_refused_before_a_chart_is_written(tmp_path):
    """It would be the name of the charts' folder too."""
    with pytest.raises(InputError, match=r"page: expected the name of a file with an ending, such as results\.md"):
        write_results([summary()], tmp_path / "results")
    assert not list(tmp_path.iterdir())


def test_another_picture_is_not_replaced(tmp_path):
    picture = tmp_path / "results" / "rate-distortion.svg"
    picture.parent.mkdir()
    picture.write_text("<svg>mine</svg>")
    with pytest.raises(InputError, match=r"page: .*rate-distortion\.svg is there already and is no chart"):
        write_results([summary()], tmp_path / "results.md")
    assert picture.read_text() == "<svg>mine</svg>" and not (tmp_path / "results.md").exists()


def test_a_page_that_is_no_text_is_anothers(tmp_path):
    (tmp_path / "page.md").write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match="is no page of results"):
        write_results([summary()], tmp_path / "page.md")
