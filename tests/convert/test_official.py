"""Reading the authors' checkpoint files."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dqcore import convert

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_load_official(tmp_path, dual):
    state, _ = dual
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "model.ckpt")
    torch.save(state, tmp_path / "model.pt")
    for name in ("model.safetensors", "model.ckpt", "model.pt"):
        loaded = convert.load_official(tmp_path / name)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


class Maker:
    def __reduce__(self):
        return (tempfile.mkdtemp, ("", "trapped", "."))


def test_load_official_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "callback": Trap()}, "trap.ckpt")
    with pytest.raises(ValueError, match=r"trap\.ckpt: not a checkpoint of tensors alone"):
        convert.load_official("trap.ckpt")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callback": Maker()}, "made.ckpt")
    assert list(convert.load_official("made.ckpt")) == ["a"]
    torch.save({"state_dict": {"a": Maker()}}, "made.ckpt")
    with pytest.raises(ValueError, match="state_dict: expected names and tensors"):
        convert.load_official("made.ckpt")
    assert not list(Path().glob("trapped*"))


def test_every_damaged_bit_of_an_archive_is_noticed(tmp_path):
    """PyTorch reads on over a wrong checksum."""
    path, state = tmp_path / "model.ckpt", {"a": torch.arange(300.0)}
    torch.save(state, path)
    data = path.read_bytes()
    refused = 0
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:
            found = convert.load_official(path)
        except ValueError as error:
            refused += "damaged" in str(error)
            continue
        assert torch.equal(found["a"], state["a"]), place
    assert refused > 100


def test_load_official_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert.load_official(tmp_path / "nothing.ckpt")
    for name in ("broken.ckpt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(ValueError, match=f"{name}: not a "):
            convert.load_official(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="state_dict: expected names and tensors"):
        convert.load_official(tmp_path / "list.pt")


def test_both_stages_are_read_from_the_second_stages_checkpoint(tmp_path, dual):
    """It holds the tokenizer too; reading the file must not decide which of them is wanted."""
    tokenizer, tokenizer_config = dual
    prior = load_file(FIXTURES / "dqtransformer_uncond.state.safetensors")
    prior_config = json.loads((FIXTURES / "dqtransformer_uncond.config.json").read_text())
    both = {f"first_stage_model.{name}": tensor for name, tensor in tokenizer.items()}
    both |= {f"transformer.{name}": tensor for name, tensor in prior.items()}
    torch.save({"state_dict": both}, tmp_path / "both.ckpt")
    state = convert.load_official(tmp_path / "both.ckpt")
    assert state.keys() == both.keys()
    for read, alone, config in (
        (convert.dqvae_from_official, tokenizer, tokenizer_config),
        (convert.dqtransformer_from_official, prior, prior_config),
    ):
        expected = read(alone, config).state_dict()
        found = read(state, config).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
