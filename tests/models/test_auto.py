"""Saved models of any class, and which prior belongs to which tokenizer."""

import pytest
import torch

import dqcore
from dqcore.errors import InputError
from dqcore.models import auto
from dqcore.models.auto import (
    PRIORS,
    TOKENIZERS,
    check_belongs,
    fingerprint,
    load_identified,
    load_saved,
    model_folder,
)
from dqcore.models.priors.dq_transformer import DQTransformer


def test_mismatches_are_named(saved_tokenizer):
    tokenizer = dqcore.DQVAE.from_pretrained(saved_tokenizer)
    prior = DQTransformer.from_preset("dqtransformer-tiny", dim=16, num_heads=2, codebook_size=16, tokenizer="other")
    check_belongs(prior, tokenizer)
    with pytest.raises(ValueError, match="tokenizer other"):
        check_belongs(prior, tokenizer, fingerprint(saved_tokenizer))
    prior = DQTransformer.from_preset("dqtransformer-tiny", dim=16, num_heads=2)
    with pytest.raises(ValueError, match="codebook_size 256, this tokenizer has 16"):
        check_belongs(prior, tokenizer)


def test_a_saved_model_is_loaded_by_its_class(saved_tokenizer):
    assert type(load_saved(saved_tokenizer, TOKENIZERS)) is dqcore.DQVAE
    with pytest.raises(ValueError, match=r"expected one of DQTransformer, .*, it describes DQVAE"):
        load_saved(saved_tokenizer, PRIORS)
    with pytest.raises(FileNotFoundError, match=r"expected a folder with config\.json"):
        load_saved(saved_tokenizer.parent, TOKENIZERS)


def test_a_config_whose_model_is_no_name(tmp_path):
    for text in ('{"model": {}}', '{"model": [1]}', "{}", "3"):
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(ValueError, match="expected"):
            load_saved(tmp_path, TOKENIZERS)


def test_the_folder_of_a_run_stands_for_its_model(saved_tokenizer, tmp_path):
    (tmp_path / "model").symlink_to(saved_tokenizer)
    assert model_folder(tmp_path) == tmp_path / "model"
    assert fingerprint(tmp_path) == fingerprint(str(saved_tokenizer))


def test_a_fingerprint_tells_tokenizers_apart(saved_tokenizer, tmp_path):
    torch.manual_seed(1)
    dqcore.DQVAE(dqcore.DQVAE.from_pretrained(saved_tokenizer).config).save_pretrained(tmp_path)
    assert fingerprint(tmp_path) != fingerprint(saved_tokenizer)


@pytest.fixture
def saved_anew(saved_tokenizer, tmp_path, monkeypatch):
    """A folder whose model is saved anew while it is read, so many times, as a training run does; gives a counter."""
    model = dqcore.DQVAE.from_pretrained(saved_tokenizer)
    model.save_pretrained(tmp_path)
    loads = []

    def prepare(times, error=None):
        def load(path, kinds):
            loads.append(load_saved(path, kinds))
            if len(loads) <= times:
                with torch.no_grad():
                    next(model.parameters()).add_(1)
                model.save_pretrained(tmp_path)
                if error:
                    raise error
            return loads[-1]

        monkeypatch.setattr(auto, "load_saved", load)
        return tmp_path, loads

    return prepare


@pytest.mark.parametrize("error", [None, InputError("the weights are of another config")])
def test_a_model_has_the_fingerprint_of_its_own_weights(saved_anew, error):
    folder, loads = saved_anew(2, error)
    model, identity = load_identified(folder, TOKENIZERS)
    assert len(loads) == 3 and model is loads[2] and identity == fingerprint(folder)
    for loaded, stored in zip(model.parameters(), load_saved(folder, TOKENIZERS).parameters(), strict=True):
        assert torch.equal(loaded, stored)


def test_a_model_that_is_saved_all_the_time_is_refused(saved_anew):
    folder, _ = saved_anew(1000)
    with pytest.raises(InputError, match="is saved anew while it is read"):
        load_identified(folder, TOKENIZERS)


def test_a_damaged_model_is_read_once(saved_tokenizer, monkeypatch):
    tries = []

    def load(path, kinds):
        tries.append(path)
        raise InputError("damaged")

    monkeypatch.setattr(auto, "load_saved", load)
    with pytest.raises(InputError, match="damaged"):
        load_identified(saved_tokenizer, TOKENIZERS)
    assert len(tries) == 1
