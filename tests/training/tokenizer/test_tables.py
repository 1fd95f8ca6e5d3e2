"""At the end of its training a tokenizer gets the tables by which its streams are coded."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import dqcore
from dqcore.data.images import image_to_tensor, read_image
from dqcore.inference.codec import load_codec
from dqcore.inference.measure import evaluate_tokenizer
from dqcore.stream import TABLES, CodeTables, load_code_tables, save_code_tables
from dqcore.training import TokenizerTraining, train_tokenizer
from dqcore.training.state import read_state
from dqcore.training.tokenizer import tables
from dqcore.training.tokenizer.stage import TokenizerStage
from dqcore.training.tokenizer.tables import calibrate, some_images, write_tables


def pictures(folder):
    folder.mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return sorted(folder.iterdir())


def test_training_ends_with_tables(tmp_path):
    pictures(tmp_path / "photos")
    options = TokenizerTraining(
        data=tmp_path / "photos", out=tmp_path / "run", preset="dqvae-dual-tiny", steps=1, batch_size=2,
        image_size=64, perceptual="none", discriminator=False, workers=0, device="cpu", validation_share=0.0,
    )  # fmt: skip
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny", channels=8, latent_channels=16, dim=16, resolution=64)
    train_tokenizer(options, model=model)
    codec = load_codec(tmp_path / "run", "cpu")
    assert len(codec.tables) == 2 and codec.tables[0] != CodeTables.uniform(256, 2)
    fitted = CodeTables.fit(torch.arange(512).reshape(2, 256), torch.tensor([1, 9]))
    save_code_tables(fitted, tmp_path / "run" / "model")
    train_tokenizer(dataclasses.replace(options, resume=True), model=model)
    again = load_codec(tmp_path / "run", "cpu")
    assert again.identity == codec.identity and again.tables[0] == codec.tables[0]
    assert fitted in again.tables  # streams were written with them


def test_damaged_tables_or_those_of_another_model_are_replaced(tmp_path):
    save_code_tables(CodeTables.uniform(50, 2), tmp_path)
    for wanted in (CodeTables.uniform(60, 2), CodeTables.uniform(60, 2)):
        save_code_tables(wanted, tmp_path)
        assert load_code_tables(tmp_path, 60, 2)[0] == wanted and len(list(tmp_path.iterdir())) == 1
        (tmp_path / TABLES).write_bytes(b"damaged")


def test_small_and_broken_images_and_other_models_do_no_harm(tmp_path):
    (tmp_path / "few").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "few" / "small.png")
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny", channels=8, latent_channels=16, dim=16)
    for other in (model, torch.nn.Linear(1, 1)):
        images = some_images(other, [tmp_path / "few" / "small.png"])
        write_tables(other, images, tmp_path)
        assert images == [] and not calibrate(other, images)
    assert not (tmp_path / TABLES).exists()


def test_each_photo_is_read_once(tmp_path, monkeypatch):
    """Thresholds and tables are of the same images, and the last validation is of the model with these thresholds."""
    paths, read = pictures(tmp_path / "photos"), []
    pictures(tmp_path / "held")[-1].unlink()
    monkeypatch.setattr(tables, "image_to_tensor", lambda picture: read.append(picture) or image_to_tensor(picture))
    options = TokenizerTraining.small(
        tmp_path / "photos", tmp_path / "run", steps=1, batch_size=2, image_size=32, workers=0, device="cpu",
        perceptual="none", validation=tmp_path / "held",
    )  # fmt: skip
    run = train_tokenizer(options)
    assert run.model.router.thresholds.isfinite().all() and (tmp_path / "run" / "model" / TABLES).is_file()
    assert len(read) == len(paths) - 1
    photos = [image_to_tensor(read_image(path))[None] for path in sorted((tmp_path / "held").iterdir())]
    assert run.metrics[-1]["val_psnr"] == pytest.approx(evaluate_tokenizer(run.model, photos).psnr, abs=1e-6)
    kept = read_state(tmp_path / "run" / "checkpoint.pt")["model"]["router.thresholds"]
    assert not torch.equal(kept, run.model.router.thresholds)  # a longer run goes on as if it had not ended here


def test_a_run_goes_on_with_the_thresholds_that_it_learns_with():
    """Those of the end hold while the last validation lasts."""
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny", router="gain", channels=8, latent_channels=16, dim=16).eval()
    model.router.thresholds.fill_(3.0)
    stage = TokenizerStage(None, None, None, SimpleNamespace(model_to_use=model))
    stage.__dict__["some_images"] = [torch.rand(2, 3, 64, 64) * 2 - 1]
    with stage.settled():
        assert model.router.thresholds.item() != 3
    assert model.router.thresholds.item() == 3
