import json
import math
import time

import pytest
import torch

from dqcore.cli.demo import run as demo
from dqcore.cli.demo.run import run_demo


@pytest.mark.slow
@pytest.mark.filterwarnings("error:KMeans")
def test_a_few_steps_make_a_run_and_a_page(tmp_path, capsys):
    out = tmp_path / "demo"
    result = run_demo(out=out, steps=3, seed=1, prior=False)
    assert result.page == out / "report.html"
    assert result.evaluation.num_images == 10
    printed = capsys.readouterr().out
    assert f"{result.evaluation.psnr:.2f} dB" in printed
    assert str(result.page) in printed
    saved = json.loads((out / "evaluation.json").read_text())
    assert saved["psnr"] == result.evaluation.psnr
    assert json.loads((out / "config.json").read_text())["options"]["steps"] == 3
    assert "Images from nothing" not in result.page.read_text()
    # Replaced, by the same, which goes on to a prior.
    again = run_demo(out=out, steps=3, seed=1)
    assert again.evaluation.psnr == result.evaluation.psnr
    page = again.page.read_text()
    for heading, pictures in (("Images from nothing", 16), ("Coarse to fine", 8), ("The lower half imagined", 16)):
        section = page.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]
        assert section.count("data:image/webp") == pictures


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="was not made by dqcore demo"):
        run_demo(out=tmp_path, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_training_run_is_left_alone(tmp_path):
    """It looks like a demo's, but for the mark."""
    for name in ("config.json", "metrics.jsonl", "checkpoint.pt", "model/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"options": {"steps": 3, "seed": 0}}')
    with pytest.raises(ValueError, match="was not made by dqcore demo"):
        run_demo(out=tmp_path, steps=1)
    assert (tmp_path / "model" / "model.safetensors").is_file() and (tmp_path / "checkpoint.pt").is_file()
    (tmp_path / demo.MARK).write_text('{"steps": 2, "seed": 0}')  # a demo that train --resume has gone on with
    with pytest.raises(ValueError, match="was trained further since"):
        run_demo(out=tmp_path, steps=1)
    assert (tmp_path / "checkpoint.pt").is_file()


def test_an_earlier_demo_is_removed_and_nothing_else(tmp_path):
    for name in (demo.MARK, "config.json", "model/model.safetensors", "prior/model/tokenizer/config.json", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"steps": 2}' if name == demo.MARK else '{"options": {"steps": 2}}')
    demo._clear(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {demo.MARK, "notes.txt"}


def _seconds_of_a_plain_step() -> float:
    """Of one core, for a step about as large as the demo's in nothing but PyTorch's convolutions."""
    layers = torch.nn.Sequential(*(torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(8)))
    images = torch.randn(8, 64, 32, 32)
    begun = time.process_time()
    for _ in range(10):
        layers(images).square().mean().backward()
    return (time.process_time() - begun) / 10


@pytest.mark.slow
def test_the_demo_learns(tmp_path, monkeypatch):
    """What the README promises, in a fifth of the steps, on photographs that training never saw."""
    monkeypatch.setattr(demo, "PRIOR_STEPS", demo.PRIOR_STEPS // 4)
    begun, plain = [time.process_time()], [_seconds_of_a_plain_step()]
    train = demo.train_prior
    monkeypatch.setattr(demo, "train_prior", lambda *args: begun.append(time.process_time()) or train(*args))
    result = run_demo(out=tmp_path / "demo", steps=demo.STEPS // 5)
    tokenizer, whole = begun[1] - begun[0], time.process_time() - begun[0]
    found = result.evaluation
    assert found.psnr >= 21.5
    assert abs(found.fine_ratio - result.target_ratio) <= 0.1
    assert found.usage > 0.5
    assert found.rank_correlation >= 0.5
    rows = [json.loads(line) for line in (tmp_path / "demo" / "prior" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val_content_loss"] for row in rows if "val_content_loss" in row]
    assert losses[-1] < 0.95 * math.log(512), "of someone who knows nothing about 512 codes"
    # Others slow a shared machine threefold, and a plain step with it: minutes alone would say nothing of the demo.
    plain.append(_seconds_of_a_plain_step())
    assert tokenizer < 600 * max(plain), "three times what a step takes today"
    assert whole < 1200 * max(plain)
