"""Saved models of any class, and which prior belongs to which tokenizer."""

import pytest
import torch

import dqcore
from dqcore.models.auto import PRIORS, TOKENIZERS, check_belongs, fingerprint, load_saved, model_folder
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
    assert fingerprint(tmp_path) == fingerprint(saved_tokenizer)


def test_a_fingerprint_tells_tokenizers_apart(saved_tokenizer, tmp_path):
    torch.manual_seed(1)
    dqcore.DQVAE(dqcore.DQVAE.from_pretrained(saved_tokenizer).config).save_pretrained(tmp_path)
    assert fingerprint(tmp_path) != fingerprint(saved_tokenizer)
