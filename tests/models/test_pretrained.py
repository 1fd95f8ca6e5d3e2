"""Saving a model and loading it again: from a folder, from the Hub, at half precision."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dqcore import DQVAE, VQGAN
from dqcore.models.auto import TOKENIZERS, load_saved


def test_round_trip(saved):
    model, path = saved
    loaded = DQVAE.from_pretrained(path)
    assert loaded.config == model.config
    assert not loaded.training
    assert sorted(os.listdir(path)) == ["README.md", "config.json", "model.safetensors"]
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    images = 2 * torch.rand(1, 3, 32, 32) - 1
    assert torch.equal(loaded(images).reconstruction, model.eval()(images).reconstruction)


def test_wrong_class(saved):
    with pytest.raises(ValueError, match="expected a VQGAN, it describes DQVAE"):
        VQGAN.from_pretrained(saved[1])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(saved, name):
    (saved[1] / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        DQVAE.from_pretrained(saved[1])


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        DQVAE.from_pretrained(tmp_path / "nothing")


def test_hub_ids_are_downloaded(saved, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot(repository, **options):
        asked.update(options | {"repository": repository})
        return str(saved[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert DQVAE.from_pretrained("hf:someone/photos").config == saved[0].config
    assert asked.pop("repository") == "someone/photos"
    assert asked.pop("allow_patterns")[:3] == ["config.json", "model.safetensors", "README.md"]
    assert set(asked.values()) == {None, False}
    kept = {"revision": "v2", "cache_dir": "c", "token": "t", "local_files_only": True, "force_download": True}
    DQVAE.from_pretrained("hf:someone/photos", **kept)
    assert kept.items() <= asked.items()
    assert load_saved(Path("hf:someone/photos"), TOKENIZERS).config == saved[0].config


@pytest.mark.parametrize("name", ["runs/mine", "someone/photos", "hf:photos", "hf:../photos", "~/x", "mine"])
def test_a_mistyped_path_asks_nobody(name, monkeypatch):
    import huggingface_hub

    def asked(*_, **__):
        raise AssertionError("asked the Hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    for load in (DQVAE.from_pretrained, lambda path: load_saved(Path(path), TOKENIZERS)):
        with pytest.raises(FileNotFoundError, match="hf:owner/name"):
            load(name)


def test_hub_failure_is_one_clear_error(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"someone/photos: .*Hub cannot be reached \(no route to host\)"):
        DQVAE.from_pretrained("hf:someone/photos")


def test_unknown_preset_and_field():
    with pytest.raises(ValueError, match="no preset 'dqvae-dua', did you mean 'dqvae-dual'"):
        DQVAE.from_preset("dqvae-dua")
    with pytest.raises(ValueError, match="no field 'codebooksize', did you mean 'codebook_size'"):
        DQVAE.from_preset("dqvae-dual", codebooksize=3)


def test_half_precision_takes_half_the_bytes_and_loads_as_float32(saved, tmp_path):
    model, path = saved
    model.save_pretrained(tmp_path / "half", torch.float16)
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.55 * (path / "model.safetensors").stat().st_size
    loaded = DQVAE.from_pretrained(tmp_path / "half").state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_what_half_precision_cannot_hold_is_refused(saved, tmp_path):
    model, _ = saved
    model.quant_conv.bias.data[0] = 1e5
    with pytest.raises(ValueError, match=r"dtype: quant_conv.bias has values beyond the range"):
        model.save_pretrained(tmp_path / "half", torch.float16)
    for dtype in (torch.int8, torch.float8_e4m3fn, "float16"):
        with pytest.raises(ValueError, match=r"dtype: expected a floating-point one of 16 bits up, such as torch.f"):
            model.save_pretrained(tmp_path / "half", dtype)
    assert not (tmp_path / "half").exists()


def test_parts_that_were_compiled_are_saved_by_their_own_names(saved, tmp_path):
    model, path = saved
    model.encoder, model.decoder = (torch.compile(part, backend="eager") for part in (model.encoder, model.decoder))
    random = torch.random.get_rng_state()
    model.save_pretrained(tmp_path / "compiled")
    assert torch.equal(torch.random.get_rng_state(), random)
    assert (tmp_path / "compiled" / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: weight_norm(m.quant_conv), "no place for quant_conv.parametrizations.weight.original0"),
        (lambda m: m.add_module("adapter", nn.Linear(2, 2)), "no place for adapter.bias"),
        (lambda m: m.add_module("again", m.encoder), "no place for again."),
        (lambda m: setattr(m, "quant_conv", nn.Identity()), "the weights lack quant_conv.bias"),
        (lambda m: m.to("meta"), "is on the meta device, without values"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(saved, tmp_path, change, message):
    model, _ = saved
    change(model)
    with pytest.raises(ValueError, match=rf"new: not saved: .*{message}"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_pretrained_takes_no_changes_and_only_presets_with_weights():
    with pytest.raises(ValueError, match="codebook_size: expected no change"):
        DQVAE.from_preset("dqvae-dual-small", pretrained=True, codebook_size=64)
    with pytest.raises(ValueError, match="no weights come with preset 'dqvae-dual'"):
        DQVAE.from_preset("dqvae-dual", pretrained=True)


def test_the_thresholds_of_a_router_that_is_not_fitted_may_be_nan(tmp_path):
    DQVAE.from_preset("dqvae-dual-entropy-tiny").save_pretrained(tmp_path)
    assert DQVAE.from_pretrained(tmp_path).router.thresholds.isnan().all()
