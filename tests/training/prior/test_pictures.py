"""Samples while a prior learns: they change nothing else, and are those of its weights."""

import pytest
import torch
from PIL import Image

from dqcore import cli
from dqcore.data.images import image_to_tensor, read_image
from dqcore.inference.sample import decode_sequence, load_pair
from dqcore.report.prior import report_prior
from dqcore.report.run import read_config
from dqcore.training.log import read_pictures
from dqcore.training.prior import stage
from dqcore.training.prior.run import PriorTraining, train_prior


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures of one size in two folders."""
    root = tmp_path_factory.mktemp("images")
    for number in range(8):
        pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    return root


def train(images, tokenizer, out, **changes):
    fields = {"steps": 4, "validate_every": 2, "log_every": 1, "views": 1, "image_size": 32, "token_budget": 30}
    options = PriorTraining.small(images, tokenizer, out, device="cpu", classes=True, dropout=0.1, **fields | changes)
    return train_prior(options, progress=lambda row: None)


def test_the_same_samples_as_far_as_the_prior_has_come(images, saved_tokenizer, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(images, saved_tokenizer, tmp_path / "with", tensorboard=True)
    kept = read_pictures(run.path)
    assert [step for step, _ in kept] == [2, 4] and kept[0][1].read_bytes() != kept[1][1].read_bytes()
    prior, tokenizer = load_pair(run.path)
    wanted = decode_sequence(tokenizer, prior.sample(4, torch.tensor([0, 1, 0, 1]), seed=0)).clamp(-1, 1)
    found = image_to_tensor(read_image(kept[-1][1]))
    assert torch.allclose(found, torch.cat(list(wanted), 2), atol=1.01 / 127.5)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("samples")] == [2, 4]
    text = report_prior(run.path, read_config(run.path)).read_text()
    assert "The same samples each time; the latest first." in text and "step 4 of 4" in text

    monkeypatch.setattr(stage, "draw", lambda *_: None)
    without = train(images, saved_tokenizer, tmp_path / "without")
    assert not read_pictures(without.path)
    rows = [[{**row, "images_per_second": 0} for row in one.metrics] for one in (run, without)]
    assert rows[0] == rows[1]
    for one, other in zip(run.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_samples_need_a_tokenizer_but_no_held_out_images(images, saved_tokenizer, tmp_path):
    run = train(images, saved_tokenizer, tmp_path / "run", validation_share=0.0, steps=1)
    assert [step for step, _ in read_pictures(run.path)] == [1]
    cli.main(["encode", str(images), "--checkpoint", str(saved_tokenizer), "--out", str(tmp_path / "codes")])
    alone = train(None, None, tmp_path / "alone", codes=tmp_path / "codes", steps=1, start="random")
    assert not read_pictures(alone.path)
