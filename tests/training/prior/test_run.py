"""A prior's training run: what it learns, which options it takes, what it leaves in its folder."""

import shutil

import pytest
import torch
from PIL import Image
from prior_runs import TINY, options, quiet

import dqcore
from dqcore.distributed import World
from dqcore.inference.sample import decode_sequence, load_pair, write_samples
from dqcore.models.auto import fingerprint
from dqcore.models.priors.dq_transformer import DQTransformer
from dqcore.stream import CodeTables, load_code_tables, save_code_tables
from dqcore.training.prior.run import train_prior
from dqcore.training.prior.step import PriorStep


def test_a_default_device_stays_outside(folder, tmp_path):
    with torch.device("meta"):
        run = train_prior(options(folder, tmp_path / "run", steps=1), progress=quiet)
    assert run.model.step_embedding.device.type == "cpu"


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
