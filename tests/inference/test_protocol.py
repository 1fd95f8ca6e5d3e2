"""One protocol: training, evaluate, reconstruct and report say the same number of the same photos."""

import json
import re

import pytest
import torch
from PIL import Image

from dqcore.data.images import image_to_tensor, pad_to_stride, read_image
from dqcore.data.photos import sample_photos
from dqcore.inference.evaluate import evaluate_photos
from dqcore.inference.protocol import NATIVE, Protocol, decode_to_size
from dqcore.inference.reconstruct import reconstruct
from dqcore.metrics import psnr
from dqcore.report import report_run
from dqcore.training import TokenizerTraining, train_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    """A run of one step, whose validation photos have sizes that no stride divides."""
    root = tmp_path_factory.mktemp("protocol")
    for index, size in enumerate([(70, 45), (50, 90), (64, 64)]):
        (root / "photos").mkdir(exist_ok=True)
        Image.open(sample_photos("heldout")[index]).crop((0, 0, *size)).save(root / "photos" / f"{index}.png")
    options = TokenizerTraining(
        data=sample_photos("train")[0].parent,
        validation=root / "photos",
        preset="dqvae-dual-tiny",
        out=root / "run",
        steps=1,
        batch_size=2,
        image_size=32,
        perceptual="none",
        discriminator=False,
        workers=0,
        device="cpu",
    )
    with torch.random.fork_rng():
        return root, train_tokenizer(options, model=model.__class__(model.config), progress=lambda row: None)


def test_everybody_says_the_same_number(run):
    root, done = run
    photos = sorted((root / "photos").iterdir())
    with torch.no_grad():
        expected = []
        for path in photos:
            image = image_to_tensor(read_image(path))[None]
            encoding = done.model.encode(pad_to_stride(image, 16))
            shown = decode_to_size(done.model, encoding.codes, encoding.grain, *image.shape[2:])
            expected.append(psnr(image, shown).item())
    mean = sum(expected) / len(expected)
    trained = next(row["val_psnr"] for row in reversed(done.metrics) if "val_psnr" in row)
    evaluated = evaluate_photos([root / "photos"], done.path)
    each = [reconstruct(done.model, image_to_tensor(read_image(path))).psnr for path in photos]
    page, reported = report_run(done.path)
    assert trained == pytest.approx(mean, abs=2e-3)  # its forward pass need not look codes up again
    assert evaluated.numbers.psnr == pytest.approx(mean, abs=1e-6)
    assert each == pytest.approx(expected, abs=1e-6)
    assert reported.psnr == pytest.approx(mean, abs=1e-6)
    text = page.read_text()
    assert f"{mean:.2f}" in text and str(NATIVE) in text
    points = re.findall(r"last: ([\d.]+) dB", text)
    assert float(points[0]) == pytest.approx(mean, abs=0.01)
    assert evaluated.protocol["training"] == "3 held out"
    assert json.loads((done.path / "seen_images.json").read_text())["training"]


def test_the_name_of_a_protocol():
    assert str(NATIVE) == "native size, 8-bit"
    assert Protocol(64, 64).resize == 64
    assert str(Protocol(64, 80)) == "central 64x64 pixels, shorter side resized to 80, 8-bit"
    assert NATIVE.prepare(Image.new("RGB", (40, 30))).size == (40, 30)
    assert Protocol(16, 20).prepare(Image.new("RGB", (40, 30))).size == (16, 16)
