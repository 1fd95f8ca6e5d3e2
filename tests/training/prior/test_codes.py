"""The codes that a prior is trained on: made from images, kept, made again, or given."""

import logging
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from prior_runs import options, quiet

import dqcore
from dqcore.data import reading
from dqcore.data.codes import CachedCodes
from dqcore.data.crops import CenterCrop
from dqcore.data.images import image_to_tensor, read_image
from dqcore.data.shards import ShardWriter
from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.inference.sample import load_pair
from dqcore.models.auto import model_folder
from dqcore.training.prior.codes import copy_tokenizer, training_codes
from dqcore.training.prior.run import PriorTraining, train_prior
from dqcore.training.state import read_state


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


@pytest.mark.parametrize("views", [1, 2])
def test_a_strip_too_narrow_to_be_resized_is_a_broken_file(folder, tmp_path, caplog, monkeypatch, views):
    """The error of its crop named neither file nor folder, and ended the run."""
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    Image.new("RGB", (1, 400)).save(images / "bright" / "strip.png")
    monkeypatch.setattr(reading, "main_memory", lambda: 40 * 3 * 10_000)
    with caplog.at_level(logging.WARNING):
        train_prior(options(folder, tmp_path / "run", data=images, views=views, steps=1), progress=quiet)
    assert "strip.png: resized to 32 on its shorter side, its 32x12800 pixels are more than" in caplog.text
    assert len(CachedCodes.of_state(read_state(tmp_path / "run" / "codes.pt"))) == 24 * views


def test_codes_are_made_again_when_a_broken_file_can_be_read(folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    (images / "bright" / "03.png").write_bytes(b"no image")
    world = World(0, 1, torch.device("cpu"))
    asked = options(folder, tmp_path, data=images).resolved()
    copy_tokenizer(asked)
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
    copy_tokenizer(asked)
    codes = training_codes(asked, World(0, 1, torch.device("cpu")))
    assert codes.labels.tolist() == [7 - number % 2 for number in range(len(names))]
    assert codes.names == tuple(f"shard.tar::{path.name}" for path in names) and len(codes.classes) == 8
    with pytest.raises(ValueError, match="views: expected 1, lsun has no random crops, got 2"):
        replace(asked, views=2)
    with pytest.raises(ValueError, match="views: expected 1, codes are not made anew for further crops, got 8"):
        PriorTraining(codes=folder / "codes", views=8)


def test_a_damaged_tokenizer_is_named_where_it_lies_and_not_copied(folder, tmp_path):
    """The message named the copy that the run had just made."""
    asked = options(folder, tmp_path / "run", steps=1)
    given = shutil.copytree(model_folder(asked.tokenizer), tmp_path / "given")
    weights = given / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match=re.escape(f"{weights}: damaged")):
        train_prior(replace(asked, tokenizer=given), progress=quiet)
    assert not (tmp_path / "run" / "model").exists()
