"""The script behind the weights in the package runs from photographs to both models as they are stored."""

import importlib.util
import sys
from pathlib import Path

import pytest

import dqcore
from dqcore.data.photos import sample_folder
from dqcore.models.weights import PRIOR, TOKENIZER

SCRIPT = Path(__file__).parents[2] / "examples" / "train_pretrained.py"


@pytest.mark.slow
def test_both_models_are_stored(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("train_pretrained", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    short = ["--tokenizer-minutes", "0.02", "--prior-minutes", "0.02", "--workers", "0"]
    short += ["--tokenizer-options", "batch_size=1,image_size=32,resize=64"]
    short += ["--prior-options", "image_size=64,resize=64,views=1,token_budget=200"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(sample_folder("train")), str(tmp_path), *short])
    example.main()
    weights = tmp_path / "weights"
    assert (weights / TOKENIZER / "code_tables.safetensors").is_file()
    tokenizer = dqcore.DQVAE.from_pretrained(weights / TOKENIZER)
    prior = dqcore.DQTransformer.from_pretrained(weights / PRIOR)
    assert prior.config.codebook_size == tokenizer.config.codebook_size
