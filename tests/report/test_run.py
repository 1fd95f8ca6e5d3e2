import json
import os
import re
import shutil
import subprocess

import pytest
import torch
from PIL import Image

import dqcore
from dqcore.data.images import list_images
from dqcore.data.photos import sample_folder
from dqcore.data.provenance import record_images
from dqcore.files.pictures import write_picture
from dqcore.inference.photos import PhotoBatches
from dqcore.metrics import psnr, round_to_8bit
from dqcore.report import report_run
from dqcore.training.status import Status

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Put into the page: what the browser made of each picture, in its title.
PROBE = """<script>window.addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement, all = selector => [...document.querySelectorAll(selector)];
  const sizes = all("img").map(i => i.complete ? i.naturalWidth : 0);
  const charts = all("svg.chart").filter(c => c.getBoundingClientRect().height > 50).length;
  const article = document.querySelector("article.photo"), text = s => article.querySelector(s).textContent;
  const press = (selector, value, kind) => {
    const input = article.querySelector(selector);
    input.value = value;
    input.dispatchEvent(new Event(kind, { bubbles: true }));
  };
  const before = [text("output"), article.querySelector(".after").src];
  const detail = article.querySelector(".detail");
  press(".detail", detail.value == 0 ? detail.max : 0, "input");
  press(".left-side", "JPEG", "change");
  press(".cut", 30, "input");
  const cut = article.querySelector(".wipe").style.getPropertyValue("--cut");
  const moved = before[0] != text("output") && before[1] != article.querySelector(".after").src;
  article.querySelector(".enlarge").click();
  const dialog = document.querySelector("dialog"), large = dialog.open && dialog.querySelectorAll("img").length;
  dialog.querySelector("button:last-of-type").click();
  document.title = JSON.stringify({ pictures: sizes.length, smallest: Math.min(...sizes), charts, moved, cut, large,
    closed: !dialog.open, peer: text(".peer"), wide: root.scrollWidth - root.clientWidth });
}, 200));</script>"""


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
    images = torch.cat(list(PhotoBatches(paths)))
    model = dqcore.DQVAE.from_pretrained(run / "model")
    with torch.no_grad():
        encoding = model.encode(images)
        expected = psnr(images, round_to_8bit(model.decode(encoding.codes, encoding.grain))).mean().item()
    text = page.read_text()
    assert found.psnr == pytest.approx(expected, abs=1e-3)
    assert f"{found.psnr:.2f}" in text and "native size, 8-bit" in text
    assert f"{found.codes_per_image:.0f}" in text
    assert "A &lt;title&gt;" in text and "x &lt;y&gt;" in text
    for path in paths[:3]:
        assert f"<h3>{path.stem}</h3>" in text
    for chart in ("Loss", "Fine regions", "PSNR", "Code usage", "Rate and distortion"):
        assert f"<h3>{chart}</h3>" in text


def test_page_needs_nothing_else(report):
    text = report[0].read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert len(text) < 2_000_000
    assert "http" not in re.sub(r'"data:[^"]*"', "", text)
    assert "@import" not in text and "url(" not in text


def chromium(tmp_path, *options):
    """Run Chromium without a window; its output."""
    if CHROMIUM is None:
        assert "CI" not in os.environ, "no Chromium to open the report with"
        pytest.skip("no Chromium")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}"]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("scheme", ["0", "1"], ids=["dark", "light"])
def test_a_browser_shows_and_moves_everything(report, tmp_path, scheme):
    """Three photos, each with input, reconstruction, overlay on its own copy of the input, and error."""
    probed = tmp_path / "probed.html"
    probed.write_text(report[0].read_text().replace("</body>", PROBE + "</body>"))
    options = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1400,1000")
    done = chromium(tmp_path, *options, "--dump-dom", probed.as_uri())
    title = re.search(r"<title>({.*})</title>", done.stdout)
    assert title, done.stderr
    found = json.loads(title[1])
    assert "its smallest file" in found.pop("peer")
    assert found == {
        "pictures": 15,
        "smallest": 128,
        "charts": 5,
        "moved": True,
        "cut": "30%",
        "large": 2,
        "closed": True,
        "wide": 0,
    }


def test_a_phone_needs_no_sideways_scrolling(report, tmp_path):
    """Chromium's windows are 500 pixels wide at least, so the page goes into a frame of 390."""
    probe = "<script>onload = () => parent.postMessage(document.body.scrollWidth - innerWidth, '*')</script>"
    (tmp_path / "page.html").write_text(report[0].read_text().replace("</body>", f"{probe}</body>"))
    frame = "<script>onmessage = event => { document.title = `excess ${event.data}` }</script>"
    frame += "<iframe src='page.html' style='width:390px;height:800px;border:0'></iframe>"
    (tmp_path / "frame.html").write_text(f"<title></title>{frame}")
    done = chromium(tmp_path, "--allow-file-access-from-files", "--dump-dom", (tmp_path / "frame.html").as_uri())
    assert re.search(r"<title>excess (0|-\d+)</title>", done.stdout), done.stdout[:200] + done.stderr


def test_it_prints(report, tmp_path):
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", report[0].as_uri())
    data = (tmp_path / "page.pdf").read_bytes()
    assert data.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", data)) in range(2, 8)


def test_it_says_what_was_trained_on(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    photos = list_images(sample_folder("heldout"))[:2]
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in photos))
    texts = []
    for seen in ([], photos[:1], photos):
        record_images(tmp_path / "run", seen)
        texts.append(report_run(tmp_path / "run", images=tmp_path / "list.txt", max_photos=1)[0].read_text())
    assert "<h2>Held-out photos</h2>" in texts[0] and "2 held out" in texts[0]
    assert "<h2>Photos</h2>" in texts[1] and "1 trained on, 1 held out" in texts[1]
    assert "<h2>Photos that it was trained on</h2>" in texts[2]
    (tmp_path / "run" / "seen_images.json").unlink()
    assert "2 unknown" in report_run(tmp_path / "run", images=tmp_path / "list.txt", max_photos=1)[0].read_text()


def test_while_it_trains(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for step in (20, 1000):
        write_picture(tmp_path / "run" / "pictures" / f"{step:08d}.png", Image.new("RGB", (30, 9)), "training")
    Status(1000, 4000, 3.25, 0.5, 90.0).write(tmp_path / "run")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photo.png")
    text = report_run(tmp_path / "run", images=tmp_path / "photo.png")[0].read_text()
    assert "While it trained" in text and text.index("step 1,000<") < text.index("step 20<")
    assert "step 1,000 of 4,000, 3.25 images a second, at most 0.5 GiB of memory, about 1 min 30 s to go" in text


def test_a_twins_errors_stand_beside_the_codes(run, tmp_path):
    dqcore.VQGAN.from_preset("vqgan-f16-tiny", channels=8, latent_channels=16, dim=16).save_pretrained(
        tmp_path / "twin"
    )
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photo.png")
    photo, page = tmp_path / "photo.png", tmp_path / "page.html"
    text = report_run(run, images=photo, out=page, twin=tmp_path / "twin")[0].read_text()
    assert "Codes and the twin" in text and "twin (VQGAN)" in text
    assert text.count('<div class="gallery wide">') == 1  # three pictures in one
    text = report_run(run, images=photo, out=page)[0].read_text()
    assert "Codes and the twin" not in text and '<div class="gallery wide">' not in text


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
