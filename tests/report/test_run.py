import json
import os
import re
import shutil
import subprocess

import pytest
import torch

import dqcore
from dqcore.data.images import list_images
from dqcore.data.photos import sample_folder
from dqcore.inference.load import ImageBatches
from dqcore.metrics import psnr
from dqcore.report import report_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Put into the page: what the browser made of each picture, in its title.
PROBE = """<script>window.addEventListener("load", () => {
  const sizes = [...document.images].map(i => i.complete ? i.naturalWidth : 0);
  const charts = [...document.querySelectorAll("svg.chart")].map(c => c.getBoundingClientRect().height > 50);
  document.title = `pictures ${sizes.length} smallest ${Math.min(...sizes)} charts ${charts.filter(Boolean).length}`;
});</script>"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, made by hand: a model and the rows that training would have written."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny", channels=8, latent_channels=16, dim=16)
    model.save_pretrained(folder / "model")
    rows = [
        {
            "step": step,
            "loss": 1 / step,
            "reconstruction_loss": 0.5 / step,
            "fine_ratio": 0.4,
            "budget_loss": 0.1 / step,
        }
        for step in range(1, 60, 10)
    ]
    rows.append({"step": 60, "val_psnr": 12.5, "val_fine_ratio": 0.45})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"preset": "dqvae-dual-tiny", "image_size": 64, "resize": 128, "batch_size": 4, "seed": 3}
    options |= {"validation": str(sample_folder("heldout")), "validation_share": 0.0, "data": "gone"}
    config = {"options": options, "parameters": 1234, "data": {"training": 9}, "steps": 60, "device": "cpu"}
    config |= {"threads": 1, "versions": {"torch": "x <y>"}, "model": {"strides": [16, 8]}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def report(run):
    return report_run(run, max_photos=3, title="A <title>")


def test_page_shows_the_models_numbers(report, run):
    page, found = report
    paths = list_images(sample_folder("heldout"))
    images = torch.cat(list(ImageBatches(paths, 128)))
    model = dqcore.DQVAE.from_pretrained(run / "model")
    with torch.no_grad():
        expected = psnr(images, model(images).reconstruction).mean().item()
    text = page.read_text()
    assert found.psnr == pytest.approx(expected, abs=1e-4)
    assert f"{expected:.2f}" in text
    assert f"{found.codes_per_image:.0f}" in text
    assert "A &lt;title&gt;" in text and "x &lt;y&gt;" in text
    for path in paths[:3]:
        assert f"<b>{path.stem}</b>" in text
    for chart in ("Loss", "Fine regions", "Budget loss", "PSNR", "Code usage"):
        assert f"<h3>{chart}</h3>" in text


def test_page_needs_nothing_else(report):
    text = report[0].read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "http" not in re.sub(r'"data:[^"]*"', "", text)
    assert "@import" not in text and "url(" not in text


def test_a_browser_shows_every_picture(report, tmp_path):
    """Three photographs of four pictures, and five charts."""
    if CHROMIUM is None:
        assert "CI" not in os.environ, "no Chromium to open the report with"
        pytest.skip("no Chromium")
    probed = tmp_path / "probed.html"
    probed.write_text(report[0].read_text().replace("</body>", PROBE + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>pictures (\d+) smallest (\d+) charts (\d+)</title>", done.stdout)
    assert title, done.stderr
    assert [int(number) for number in title.groups()] == [12, 384, 5]


def test_other_images_and_place(run, tmp_path):
    page, found = report_run(run, images=sample_folder("train"), out=tmp_path / "page.html", max_images=2)
    assert page == tmp_path / "page.html"
    assert found.num_images == 2


def test_not_a_run(tmp_path, run):
    with pytest.raises(FileNotFoundError, match="expected the folder of a training run"):
        report_run(tmp_path)
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not the description of a training run"):
        report_run(tmp_path / "copy")
