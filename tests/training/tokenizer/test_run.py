import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from dqcore.data.photos import sample_folder
from dqcore.distributed import World
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.training import NonFiniteLossError, TokenizerTraining, train_tokenizer
from dqcore.training.state import read_state
from dqcore.training.tokenizer.images import find_images
from dqcore.training.tokenizer.tables import some_images


def _quiet(row):
    pass


@pytest.mark.slow
def test_learns_pictures(tiny, options):
    long = {
        "steps": 60,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "schedule": "cosine",
        "validate_every": 60,
        "in_memory": True,
        "seed": 2,  # use of 32 codes on two held-out pictures varies from 0.2 to 0.6 with the seed
    }
    rows = train_tokenizer(
        options(**long, discriminator=False, average_decay=0.9), model=tiny(decay=0.9), progress=_quiet
    ).metrics
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    final = rows[-1]
    assert final["step"] == 60 and final["val_psnr"] > 13 and final["val_usage"] > 0.3
    assert np.mean([row["fine_ratio"] for row in rows[-21:-1]]) == pytest.approx(0.5, abs=0.05)


def test_a_default_device_stays_outside(tiny, options):
    """As ``torch.set_default_device("cuda")``, with which PyTorch's own loaders fail."""
    model = tiny()
    with torch.device("meta"):
        run = train_tokenizer(options(steps=1, discriminator=False), model=model, progress=_quiet)
        assert torch.empty(0).is_meta
    assert run.model.decoder.conv_out.weight.device.type == "cpu"


def test_run_folder(tiny, options):
    seen, model, state = [], tiny(), torch.get_rng_state()
    run = train_tokenizer(options(average_decay=0.9), model=model, progress=seen.append)
    assert torch.equal(torch.get_rng_state(), state)
    names = {path.name for path in run.path.iterdir()}
    files = {"metrics.jsonl", "config.json", "checkpoint.pt", "seen_images.json", "status.json"}
    assert names == files | {"model", "pictures"}
    assert [path.name for path in sorted((run.path / "pictures").iterdir())] == ["00000004.png", "00000008.png"]
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == run.metrics == seen
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert {
        *("step", "loss", "reconstruction_loss", "commitment_loss", "budget_loss", "adversarial_loss"),
        *("discriminator_loss", "adversarial_weight", "logits_real", "logits_fake", "ratios", "fine_ratio", "usage"),
        *("perplexity", "learning_rate", "images_per_second", "broken_images", "gradient_norm"),
    } == set(steps[0])
    assert [row["step"] for row in rows if "val_psnr" in row] == [4, 8]
    config = json.loads((run.path / "config.json").read_text())
    assert config["data"]["training"] == 22 and config["data"]["validation"] == 2 and config["steps"] == 8
    assert config["options"]["warmup_steps"] == 2 and config["versions"]["torch"] == torch.__version__
    card = (run.path / "model" / "README.md").read_text()
    assert f"| PSNR of held-out images, dB | {rows[-1]['val_psnr']:.4g} |" in card
    assert "- Data: 22 images to train on, 2 held out, folder `" in card and "8 steps, seed" in card
    state = read_state(run.path / "checkpoint.pt")
    assert state["step"] == 8 and {"model", "optimizer", "discriminator", "adversary", "average"} <= set(state)
    loaded = DQVAE.from_pretrained(run.path / "model")
    assert not run.model.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name])
    assert not torch.equal(state["model"]["quant_conv.weight"], loaded.state_dict()["quant_conv.weight"])


def test_presets_and_starting_weights(options, tmp_path):
    first = train_tokenizer(
        options(preset="dqvae-dual-tiny", steps=1, codebook_size=64, target_ratio=(0.25,), validation_share=0),
        progress=_quiet,
    )
    assert first.model.config.codebook_size == 64 and first.model.config.target_ratio == (0.25,)
    assert first.model.config.resolution == 32 and first.model.config.restart
    again = options(preset="dqvae-dual-tiny", steps=1, codebook_size=64, learning_rate=1e-12, validation_share=0)
    again = dataclasses.replace(again, out=tmp_path / "again", init_from=first.path / "model")
    model = train_tokenizer(again, progress=_quiet).model
    torch.testing.assert_close(model.quant_conv.weight, first.model.quant_conv.weight)
    torch.testing.assert_close(model.decoder.conv_out.weight, first.model.decoder.conv_out.weight)
    wrong = dataclasses.replace(again, codebook_size=32, out=tmp_path / "wrong")
    with pytest.raises(ValueError, match=r"init_from: .* does not fit preset dqvae-dual-tiny: size mismatch"):
        train_tokenizer(wrong)
    shutil.rmtree(first.path)  # what has begun goes on without the weights that it started from
    longer = train_tokenizer(dataclasses.replace(again, steps=2, resume=True), progress=_quiet)
    assert longer.metrics[-1]["step"] == 2


def test_a_fixed_length_tokenizer_trains_too(options):
    run = train_tokenizer(options(preset="vqgan-f8-tiny", steps=2), progress=_quiet)
    assert run.metrics[0]["ratios"] == [1.0] and run.metrics[-1]["val_ratios"] == [1.0]


def test_entropy_thresholds_are_fitted_to_the_images(tiny, options):
    model = tiny(router="entropy", target_ratio=(0.25,))
    quick = options(threshold_images=64, discriminator=False, average_decay=0.9)
    run = train_tokenizer(quick, model=model, progress=_quiet)
    assert model.router.fitted and run.model.router.fitted
    images, loaded = torch.rand(1, 3, 32, 32) * 2 - 1, DQVAE.from_pretrained(run.path / "model").eval()
    assert torch.equal(loaded(images).reconstruction, run.model(images).reconstruction)
    assert np.mean([row["fine_ratio"] for row in run.metrics if "loss" in row]) == pytest.approx(0.25, abs=0.1)


def test_broken_images_are_named_and_passed_over(tiny, options, pictures, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(pictures, folder)
    (folder / "z\nz.png").write_text("not an image")
    run = train_tokenizer(options(data=folder, steps=7, validation_share=0), model=tiny(), progress=_quiet)
    assert run.metrics[-1]["broken_images"] == 1
    (line,) = (run.path / "broken_images.txt").read_text().splitlines()
    assert r"z\nz.png: " in line


def test_a_broken_held_out_image_is_named_and_no_other_counts_twice(tiny, options, pictures, tmp_path):
    folder, runs = tmp_path / "held out", []
    shutil.copytree(pictures, folder, ignore=lambda _, names: names[4:])
    for name in ("whole", "broken"):
        runs.append(train_tokenizer(options(steps=1, validation=folder, out=tmp_path / name), model=tiny()))
        (folder / "00a.png").write_text("not an image")
    numbers = [{name: value for name, value in run.metrics[-1].items() if name != "step"} for run in runs]
    assert numbers[1] == numbers[0] and numbers[0]["val_psnr"] > 0
    assert "00a.png" in (runs[1].path / "broken_images.txt").read_text()


def test_non_finite_loss_stops_the_run(tiny, options):
    model = tiny()
    forward, calls = model.forward, []

    def poisoned(images):
        calls.append(1)
        out = forward(images)
        return out._replace(commitment_loss=out.commitment_loss * (torch.nan if len(calls) > 4 else 1))

    model.forward = poisoned
    with pytest.raises(NonFiniteLossError, match=r"commitment_loss is nan in step 5; .*nonfinite.pt") as error:
        train_tokenizer(options(validation_share=0), model=model, progress=_quiet)
    assert (error.value.term, error.value.step) == ("commitment_loss", 5)
    folder = options().out
    state = read_state(folder / "nonfinite.pt")
    assert state["step"] == 4 and len(state["files"][0]) == 4 and state["images"].shape == (4, 3, 32, 32)
    assert all(value.isfinite().all() for value in state["model"].values() if value.is_floating_point())
    assert read_state(folder / "checkpoint.pt")["step"] == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": "missing"}, FileNotFoundError, "missing: no such folder"),
        ({"batch_size": 23}, ValueError, "batch_size: 23 is more than the 22 images"),
        ({"image_size": 36, "resize": 36}, ValueError, "image_size: expected a multiple of 8"),
        ({"image_size": 16}, ValueError, "image_size: the discriminator needs at least 24"),
        (
            {"perceptual": "lpips", "discriminator": False, "image_size": 8, "resize": 8},
            *(ValueError, "image_size: LPIPS needs at least 16 pixels, got 8"),
        ),
        ({"preset": "dqvae-dul-tiny"}, ValueError, "the nearest is 'dqvae-dual-tiny'"),
        ({"device": "cuda:77"}, ValueError, "device: 'cuda:77' cannot be used here"),
        ({"perceptual": "lpips"}, ValueError, "perceptual: LPIPS needs VGG16's weights"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tiny, options, tmp_path, monkeypatch, changes, error, message):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    if "data" in changes:
        changes = {"data": tmp_path / "missing"}
    with pytest.raises(error, match=message):
        train_tokenizer(options(**changes), model=None if "preset" in changes else tiny())
    assert not options().out.exists()


def test_an_empty_folder(tiny, options, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no image"):
        train_tokenizer(options(data=tmp_path / "empty"), model=tiny())


def test_a_finished_run_is_not_overwritten(tiny, options):
    train_tokenizer(options(steps=1), model=tiny(), progress=_quiet)
    with pytest.raises(ValueError, match="holds a run already; resume it"):
        train_tokenizer(options(steps=1), model=tiny(), progress=_quiet)
    assert isinstance(options(), TokenizerTraining)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_a_gain_router_meets_its_share_on_the_training_images(tmp_path, ratio):
    photos, out = sample_folder("train"), tmp_path / "run"
    sizes = {"image_size": 32, "resize": 128, "batch_size": 4}
    options = TokenizerTraining.small(photos, out, steps=4, target_ratio=(ratio,), device="cpu", **sizes)
    model = train_tokenizer(options, progress=_quiet).model
    paths = find_images(options.resolved(), World(0, 1, torch.device("cpu"))).training.paths
    assert model.config.router == "gain" and model.config.target_ratio == (ratio,)
    with torch.no_grad():
        grains = [model.encode(image).grain.flatten() for image in some_images(model, paths)]
    assert torch.cat(grains).double().mean() == pytest.approx(ratio, abs=0.02)
    saved = DQVAE.from_pretrained(out / "model")
    assert torch.equal(saved.router.thresholds, model.router.thresholds)
