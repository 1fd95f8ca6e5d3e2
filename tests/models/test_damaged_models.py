"""Saved models that are damaged, incomplete or of other sizes, and saves that are killed."""

import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from dqcore import DQVAE, VQGAN
from dqcore.files.tensors import save_tensors


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_killed_save_leaves_the_old_files(saved, monkeypatch):
    model, path = saved
    before = {name: (path / name).read_bytes() for name in os.listdir(path)}
    with torch.no_grad():
        model.quant_conv.weight.add_(1)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(path)
    assert {name: (path / name).read_bytes() for name in os.listdir(path)} == before


def test_files_are_on_disk_before_they_take_their_place(saved, monkeypatch):
    model, path = saved
    events = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor):
        events.append("flush")
        fsync(descriptor)

    def move(source, target):
        events.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", move)
    model.save_pretrained(path)
    files = ("model.safetensors", "config.json", "README.md")
    assert events == [event for name in files for event in ("flush", name, "flush")]


def test_unknown_config_key(saved):
    edit(saved[1] / "config.json", chanels=8)
    with pytest.raises(ValueError, match=r"config.json: there is no field 'chanels', did you mean 'channels'\?"):
        DQVAE.from_pretrained(saved[1])


def test_broken_config(saved):
    (saved[1] / "config.json").write_text("[1, 2")
    with pytest.raises(ValueError, match="expected a JSON object"):
        DQVAE.from_pretrained(saved[1])


def test_config_value_that_does_not_fit(saved):
    edit(saved[1] / "config.json", groups=7)
    with pytest.raises(ValueError, match="groups: expected a divisor"):
        DQVAE.from_pretrained(saved[1])


def test_shape_mismatch(saved):
    edit(saved[1] / "config.json", codebook_size=128)
    with pytest.raises(ValueError, match=r"model.safetensors: quantizer.* has shape"):
        DQVAE.from_pretrained(saved[1])


def test_weights_that_are_missing_or_left_over(saved):
    weights = saved[1] / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "extra": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="no place for extra"):
        DQVAE.from_pretrained(saved[1])
    del state["quant_conv.bias"]
    save_file(state, weights)
    with pytest.raises(ValueError, match=r"lack quant_conv\.bias"):
        DQVAE.from_pretrained(saved[1])


def test_truncated_weights(saved):
    weights = saved[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a safetensors file"):
        DQVAE.from_pretrained(saved[1])


def test_config_of_another_model():
    with pytest.raises(TypeError, match="config: expected a DQVAEConfig, got VQGANConfig"):
        DQVAE(VQGAN.PRESETS["vqgan-f8"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(saved, tmp_path, value):
    model, path = saved
    before = (path / "model.safetensors").read_bytes()
    model.quant_conv.bias.data[0] = value
    with pytest.raises(ValueError, match=r"quant_conv\.bias holds NaN or infinite"):
        model.save_pretrained(path)
    assert (path / "model.safetensors").read_bytes() == before
    save_tensors(path / "model.safetensors", model.state_dict())
    with pytest.raises(ValueError, match=r"model\.safetensors: quant_conv\.bias holds NaN or infinite"):
        DQVAE.from_pretrained(path)


def test_every_damaged_bit_of_the_weights_is_noticed(saved):
    path = saved[1] / "model.safetensors"
    data = bytearray(path.read_bytes())
    rng = random.Random(0)
    for place in [3, 9, 40, *(rng.randrange(len(data)) for _ in range(20))]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            DQVAE.from_pretrained(saved[1])


@pytest.mark.parametrize(
    "fields",
    [
        {"codebook_size": 10**13},
        {"dim": 2**40},
        {"channels": 10**8},
        {"num_blocks": 10**9},
        {"encoder_multipliers": [1] * 1000},
        {"encoder_multipliers": [10**12, 1, 1]},
        {"strides": "16"},
        {"strides": [16.5, 8]},
        {"codebook_size": "many"},
        {"codebook_size": None},
        {"codebook_size": True},
        {"decay": "0.9"},
        {"decay": float("nan")},
        {"decay": 10**400},
        {"position": 3},
        {"groups": 0},
    ],
    ids=str,
)
def test_damaged_configs_are_one_clear_error(saved, fields):
    edit(saved[1] / "config.json", **fields)
    with pytest.raises(ValueError, match=next(iter(fields))):
        DQVAE.from_pretrained(saved[1])


def test_a_config_belongs_to_its_weights(saved):
    """Of such a change nothing else would tell: all shapes fit."""
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))  # laid out otherwise, the same
    DQVAE.from_pretrained(saved[1])
    edit(path, temperature=2.0)
    with pytest.raises(ValueError, match=r"config\.json: damaged, or changed by hand since the weights were saved"):
        DQVAE.from_pretrained(saved[1])
