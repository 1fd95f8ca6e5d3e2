"""Training of priors on cached codes: learning, exact resumption, and what belongs together."""

import json
import logging
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import dqcore
from dqcore.data.codes import CachedCodes
from dqcore.data.crops import CenterCrop
from dqcore.data.images import image_to_tensor, read_image
from dqcore.data.shards import ShardWriter
from dqcore.distributed import World
from dqcore.inference.sample import decode_sequence, load_pair, write_samples
from dqcore.models.auto import fingerprint
from dqcore.models.priors.dq_transformer import DQTransformer
from dqcore.stream import CodeTables, load_code_tables, save_code_tables
from dqcore.training.prior import build
from dqcore.training.prior.codes import keep_tokenizer, training_codes
from dqcore.training.prior.run import PriorTraining, train_prior
from dqcore.training.prior.start import start_from_codes
from dqcore.training.prior.step import PriorStep
from dqcore.training.state import read_state

TINY = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two classes, and a tokenizer for them."""
    root = tmp_path_factory.mktemp("prior")
    gen = torch.Generator().manual_seed(0)
    for number in range(24):
        kind = ("dark", "bright")[number % 2]
        values = torch.randint(0, 100, (40, 40, 3), generator=gen) + 150 * (number % 2)
        path = root / "images" / kind / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.to(torch.uint8).numpy()).save(path)
    torch.manual_seed(0)
    tokenizer = dqcore.DQVAE.from_preset("dqvae-dual-tiny", **TINY)
    tokenizer.save_pretrained(root / "tokenizer")
    return root


def options(folder, out, **changes):
    fields = {
        "data": folder / "images",
        "tokenizer": folder / "tokenizer",
        "out": out,
        "recipe": "paper",
        "preset": "dqtransformer-tiny",
        "image_size": 32,
        "steps": 6,
        "token_budget": 60,
        "log_every": 1,
        "checkpoint_every": 3,
        "device": "cpu",
        "learning_rate": 1e-3,
    }
    return PriorTraining(**(fields | changes))


def quiet(row):
    pass


def test_a_default_device_stays_outside(folder, tmp_path):
    with torch.device("meta"):
        run = train_prior(options(folder, tmp_path / "run", steps=1), progress=quiet)
    assert run.model.step_embedding.device.type == "cpu"


class Stopped(Exception):
    pass


def test_resumed_runs_reach_the_same_numbers(folder, tmp_path):
    fields = {"views": 2, "classes": True, "label_dropout": 0.2, "average_decay": 0.9, "validation_share": 0.1}
    whole = train_prior(options(folder, tmp_path / "whole", **fields), progress=quiet)

    def stop(row):
        if row["step"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train_prior(options(folder, tmp_path / "parts", **fields), progress=stop)
    parts = train_prior(options(folder, tmp_path / "parts", resume=True, **fields), progress=quiet)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(one, other)
    drop = {"images_per_second"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in whole.metrics] == [
        {k: v for k, v in row.items() if k not in drop} for row in parts.metrics
    ]
    assert whole.classes == ("bright", "dark")
    assert json.loads((whole.path / "model" / "classes.json").read_text()) == ["bright", "dark"]
    assert {"content_loss_0", "position_loss_1", "bits_per_image", "gradient_norm"} <= whole.metrics[0].keys()
    assert whole.metrics[-1]["val_bits_per_image"] > 0
    bits = f"{whole.metrics[-1]['val_bits_per_image']:.4g}"
    assert f"| bits per held-out image | {bits} |" in (whole.path / "model" / "README.md").read_text()


def test_a_resumed_run_makes_its_start_no_second_time(folder, tmp_path, monkeypatch):
    seen = []

    def counted(*words):
        seen.append(words)
        start_from_codes(*words)

    monkeypatch.setattr(build, "start_from_codes", counted)
    asked = options(folder, tmp_path / "run", start="codes", steps=1)
    first = train_prior(asked, progress=quiet)
    again = train_prior(replace(asked, steps=2, resume=True), progress=quiet)
    assert len(seen) == 1 and again.metrics[: len(first.metrics) - 1] == first.metrics[:-1]


def test_a_resumed_run_that_is_refused_keeps_its_codes(folder, tmp_path):
    asked = options(folder, tmp_path / "run", steps=1)
    train_prior(asked, progress=quiet)
    before = {path: path.read_bytes() for path in asked.out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="seed: the run was started with"):
        train_prior(replace(asked, seed=5, resume=True), progress=quiet)
    assert {path: path.read_bytes() for path in asked.out.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["dqtransformer-tiny", "raster-dynamic-tiny", "global-local-tiny"])
def test_priors_learn_and_draw_images(folder, tmp_path, preset, monkeypatch):
    run = train_prior(
        options(folder, tmp_path / "run", preset=preset, steps=60, token_budget=200, classes=True, dropout=0.0),
        progress=quiet,
    )
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    prior, tokenizer = load_pair(run.path)
    samples = write_samples(prior, tokenizer, tmp_path / "out", 3, labels=1, batch_size=1, seed=1, top_k=None)
    assert [path.name for path in samples.paths] == ["00000.png", "00001.png", "00002.png"]
    with Image.open(samples.paths[0]) as image, Image.open(samples.grid) as grid:
        assert image.size == (32, 32)
        assert grid.size == (3 * 32 + 4, 32)
    monkeypatch.setattr("dqcore.inference.sample.CHUNK", 2)
    again = write_samples(prior, tokenizer, tmp_path / "more", 3, labels=1, batch_size=1, seed=1, top_k=None)
    for one, other in zip(samples.paths, again.paths, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert again.grid.read_bytes() == samples.grid.read_bytes()


def test_a_plain_raster_prior_trains_on_fixed_length_codes(folder, tmp_path):
    changes = {name: value for name, value in TINY.items() if name != "router_groups"}
    dqcore.VQGAN.from_preset("vqgan-f8-tiny", **changes).save_pretrained(tmp_path / "vqgan")
    run = train_prior(
        options(folder, tmp_path / "run", tokenizer=tmp_path / "vqgan", preset="raster-tiny"), progress=quiet
    )
    prior, tokenizer = load_pair(run.path)
    assert decode_sequence(tokenizer, prior.generate(2, seed=0)).shape == (2, 3, 32, 32)
    assert run.metrics[0]["position_loss"] == 0


def test_codes_are_made_once_and_again_when_anything_changed(folder, tmp_path, monkeypatch):
    calls = []
    encode = dqcore.DQVAE.encode
    monkeypatch.setattr(dqcore.DQVAE, "encode", lambda self, x: calls.append(len(x)) or encode(self, x))
    train_prior(options(folder, tmp_path, steps=1), progress=quiet)
    assert sum(calls) == 24
    train_prior(options(folder, tmp_path, steps=2, resume=True), progress=quiet)
    assert sum(calls) == 24
    for name in ("checkpoint.pt", "model/model.safetensors"):
        (tmp_path / name).unlink()
    train_prior(options(folder, tmp_path, steps=1, image_size=48), progress=quiet)
    assert sum(calls) == 48


def test_options_of_images_beside_given_codes_are_named(caplog):
    options = PriorTraining(codes="codes", image_size=64, recipe="small", device="cpu").resolved()
    assert caplog.messages == ["image_size changes nothing: codes holds codes that are made already"]
    assert options.codes == Path("codes")


def test_codes_of_a_folder(folder, tmp_path):
    """As ``dqcore encode`` writes them: they can be trained on without their tokenizer."""
    about = {"tokenizer": "abc", "strides": [16, 8], "codebook_size": 16}
    writer = ShardWriter(tmp_path, about)
    for number in range(4):
        grain = torch.randint(0, 2, (2, 2))
        codes = torch.randint(0, 16, (2, 2)).repeat_interleave(2, 0).repeat_interleave(2, 1)
        writer.add(f"{'ab'[number % 2]}/{number}.png", (32, 32), codes, grain)
    writer.flush()
    fields = {"codes": tmp_path, "data": None, "validation_share": 0.0, "token_budget": 20, "steps": 1}
    with pytest.raises(ValueError, match=r"tokenizer: the codes in .* were made by tokenizer abc"):
        train_prior(options(folder, tmp_path / "run", **fields), progress=quiet)
    alone = PriorTraining(
        codes=tmp_path,
        out=tmp_path / "free",
        preset="dqtransformer-tiny",
        steps=1,
        token_budget=20,
        validation_share=0.0,
        device="cpu",
    )
    run = train_prior(alone, progress=quiet)
    assert run.model.config.tokenizer == "abc"
    with pytest.raises(FileNotFoundError, match="no tokenizer was saved"):
        load_pair(run.path)
    with pytest.raises(ValueError, match="trained on the codes of tokenizer abc"):
        load_pair(run.path, folder / "tokenizer")


def test_only_linear_weights_decay():
    model = DQTransformer.from_preset("dqtransformer-tiny", dim=16, num_heads=2, region_grid=(2, 2))
    step = PriorStep(model, World(0, 1, torch.device("cpu")), weight_decay=0.5)
    decayed = {id(p) for group in step.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert names == {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert sum(len(group["params"]) for group in step.optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "codes: expected either"),
        ({"tokenizer": None}, "tokenizer"),
        ({"epochs": 1.0}, "steps"),
        ({"label_dropout": 0.1}, "label_dropout"),
        ({"token_budget": 0}, "token_budget"),
        ({"content_layers": 10**9}, "content_layers: expected a number from 1 to 1000"),
        ({"resize": -1}, "resize: expected at least 1, got -1"),
        ({"preset": "dqtransformer-tyni"}, "the nearest is 'dqtransformer-tiny'"),
        ({"image_size": 40}, "image_size: expected a multiple of 16"),
    ],
)
def test_wrong_options_are_named(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_prior(options(folder, tmp_path / "run", **changes), progress=quiet)


def test_a_folder_holds_one_run(folder, tmp_path):
    train_prior(options(folder, tmp_path, steps=1), progress=quiet)
    with pytest.raises(ValueError, match="holds a run already"):
        train_prior(options(folder, tmp_path, steps=1), progress=quiet)
    with pytest.raises(ValueError, match="learning_rate: the run was started with"):
        train_prior(options(folder, tmp_path, steps=2, resume=True, learning_rate=1.0), progress=quiet)


def test_a_broken_file_moves_no_code_and_no_label(folder, tmp_path, caplog):
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    for name in ("bright/03.png", "dark/04.png"):
        (images / name).write_bytes(b"no image")
    fields = {"data": images, "classes": True, "views": 2, "steps": 1}
    with caplog.at_level(logging.WARNING):
        train_prior(options(folder, tmp_path / "run", **fields), progress=quiet)
    assert "bright/03.png" in caplog.text and "dark/04.png" in caplog.text
    codes = CachedCodes.of_state(read_state(tmp_path / "run" / "codes.pt"))
    assert len(codes) == 2 * len(codes.names) == 44
    assert [codes.classes[label] for label in codes.labels] == 2 * [name.split("/")[0] for name in codes.names]
    tokenizer = dqcore.DQVAE.from_pretrained(folder / "tokenizer")
    for number, name in enumerate(codes.names):
        crop = CenterCrop(32, 32).prepare(read_image(images / name))
        encoding = tokenizer.encode(image_to_tensor(crop)[None])
        expected = dqcore.pack_codes(encoding.codes, encoding.grain, num_granularities=2)
        assert torch.equal(codes.batch(torch.tensor([number]))[0].codes, expected.codes), name


def test_codes_are_made_again_when_a_broken_file_can_be_read(folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    (images / "bright" / "03.png").write_bytes(b"no image")
    world = World(0, 1, torch.device("cpu"))
    asked = options(folder, tmp_path, data=images).resolved()
    keep_tokenizer(asked)
    assert len(training_codes(asked, world)) == 23
    shutil.copy(folder / "images" / "bright" / "03.png", images / "bright" / "03.png")
    assert len(training_codes(replace(asked, resume=True), world)) == 23  # what the run was started with
    assert len(training_codes(asked, world)) == 24


def test_codes_of_a_shard_with_labels(folder, tmp_path):
    """The labels that stand in it, and the crops that its data set is known for."""
    names = sorted((folder / "images" / "dark").iterdir())
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, path in enumerate(names):
            tar.add(path, path.name)
            (tmp_path / "label").write_text(str(7 - number % 2))
            tar.add(tmp_path / "label", f"{path.stem}.cls")
    asked = PriorTraining.small(tmp_path / "shard.tar", folder / "tokenizer", tmp_path / "run", image_size=32)
    asked = replace(asked, classes=True, device="cpu", preprocessing="lsun").resolved()
    assert asked.views == 1 and asked.resize is None
    keep_tokenizer(asked)
    codes = training_codes(asked, World(0, 1, torch.device("cpu")))
    assert codes.labels.tolist() == [7 - number % 2 for number in range(len(names))]
    assert codes.names == tuple(f"shard.tar::{path.name}" for path in names) and len(codes.classes) == 8
    with pytest.raises(ValueError, match="views: expected 1, lsun has no random crops, got 2"):
        replace(asked, views=2)
    with pytest.raises(ValueError, match="views: expected 1, codes are not made anew for further crops, got 8"):
        PriorTraining(codes=folder / "codes", views=8)


def test_the_tokenizer_is_copied_before_anything_is_trained(folder, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(folder / "tokenizer", tokenizer)
    uniform = CodeTables.uniform(16, 2)
    save_code_tables(uniform, tokenizer)
    identity = fingerprint(tokenizer)

    def saved_anew(row):
        shutil.rmtree(tokenizer, ignore_errors=True)

    run = train_prior(options(folder, tmp_path / "run", tokenizer=tokenizer, steps=2), progress=saved_anew)
    assert not tokenizer.exists()
    load_pair(run.path)
    assert fingerprint(run.path / "model" / "tokenizer") == identity == run.model.config.tokenizer
    assert load_code_tables(run.path / "model" / "tokenizer", 16, 2)[0] == uniform
    again = train_prior(options(folder, run.path, tokenizer=tokenizer, steps=3, resume=True), progress=quiet)
    assert again.metrics[-1]["step"] == 3


def test_a_resumed_prior_keeps_its_split(folder, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="dqcore")
    with monkeypatch.context() as before:
        before.setattr(build, "least_held_out", lambda count: 1)
        train_prior(options(folder, tmp_path / "run", steps=1), progress=quiet)
    train_prior(options(folder, tmp_path / "run", steps=2, resume=True), progress=quiet)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["codes"]["held_out"] == 1
    train_prior(options(folder, tmp_path / "fresh", steps=1), progress=quiet)
    assert json.loads((tmp_path / "fresh" / "config.json").read_text())["codes"]["held_out"] == 2
    assert [f"{24 - held} images to train on, {held} held out" in caplog.text for held in (1, 2)] == [True, True]
