"""Saved models of any class, and which prior belongs to which tokenizer."""

import pytest
import torch

import dqcore
from dqcore.models.auto import PRIORS, TOKENIZERS, check_belongs, fingerprint, load_saved, model_folder
from dqcore.models.priors.dq_transformer import DQTransformer

TINY = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved tokenizer."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    dqcore.DQVAE.from_preset("dqvae-dual-tiny", **TINY).save_pretrained(root / "tokenizer")
    return root


def test_mismatches_are_named(folder):
    tokenizer = dqcore.DQVAE.from_pretrained(folder / "tokenizer")
    prior = DQTransformer.from_preset("dqtransformer-tiny", dim=16, num_heads=2, codebook_size=16, tokenizer="other")
    check_belongs(prior, tokenizer)
    with pytest.raises(ValueError, match="tokenizer other"):
        check_belongs(prior, tokenizer, fingerprint(folder / "tokenizer"))
    prior = DQTransformer.from_preset("dqtransformer-tiny", dim=16, num_heads=2)
    with pytest.raises(ValueError, match="codebook_size 256, this tokenizer has 16"):
        check_belongs(prior, tokenizer)


def test_a_saved_model_is_loaded_by_its_class(folder):
    assert type(load_saved(folder / "tokenizer", TOKENIZERS)) is dqcore.DQVAE
    with pytest.raises(ValueError, match=r"expected one of DQTransformer, .*, it describes DQVAE"):
        load_saved(folder / "tokenizer", PRIORS)
    with pytest.raises(FileNotFoundError, match=r"expected a folder with config\.json"):
        load_saved(folder, TOKENIZERS)


def test_the_folder_of_a_run_stands_for_its_model(folder, tmp_path):
    (tmp_path / "model").symlink_to(folder / "tokenizer")
    assert model_folder(tmp_path) == tmp_path / "model"
    assert fingerprint(tmp_path) == fingerprint(folder / "tokenizer")


def test_a_fingerprint_tells_tokenizers_apart(folder, tmp_path):
    torch.manual_seed(1)
    dqcore.DQVAE.from_preset("dqvae-dual-tiny", **TINY).save_pretrained(tmp_path)
    assert fingerprint(tmp_path) != fingerprint(folder / "tokenizer")
