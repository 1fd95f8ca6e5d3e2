"""``dqcore convert``."""

import json
import os
import resource

import torch

import dqcore
from dqcore.models.tokenizers.vqgan import VQGAN, VQGANConfig


def test_convert_refuses(fails, tmp_path):
    torch.save({"state_dict": {"encoder.x": torch.zeros(1)}}, tmp_path / "a.ckpt")
    (tmp_path / "c.json").write_text("[1]")
    args = ("convert", tmp_path / "a.ckpt", "--config", tmp_path / "c.json", "--out", tmp_path / "o")
    assert "expected a JSON object" in fails(*args)
    (tmp_path / "c.json").write_text("{}")
    fails(*args)
    assert not os.path.exists(tmp_path / "o")


def test_a_vqgan_there_and_back(run, fails, tmp_path):
    sizes = {"channels": 32, "encoder_multipliers": (1, 1), "decoder_multipliers": (1, 1), "strides": (2,)}
    model = VQGAN(VQGANConfig(**sizes, latent_channels=32, dim=8, codebook_size=20, num_blocks=1, encoder_attention=()))
    model.eval().save_pretrained(tmp_path / "ours")
    there = ("convert", tmp_path / "ours", "--to", "taming", "--out", tmp_path / "theirs.ckpt")
    code, out, _ = run(*there)
    assert code == 0 and "tensors in" in out
    assert "is there already" in fails(*there)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # as on a full disk
    try:
        assert "File too large" in fails(*there[:-1], tmp_path / "more.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "more.ckpt").exists()
    code, out, _ = run("convert", tmp_path / "theirs.ckpt", "--out", tmp_path / "back")
    assert code == 0 and "holds a tokenizer of taming-transformers" in out
    image = torch.rand(1, 3, 8, 12) * 2 - 1
    with torch.no_grad():
        found, expected = VQGAN.from_pretrained(tmp_path / "back")(image), model(image)
    assert torch.equal(found.reconstruction, expected.reconstruction)
    torch.save({"encoder.x": torch.zeros(1)}, tmp_path / "a.ckpt")
    assert "is neither taming-transformers' nor LlamaGen's" in fails(
        "convert", tmp_path / "a.ckpt", "--out", tmp_path / "o"
    )


def test_convert(run, fails, tmp_path):
    """A model written in the authors' layout comes back the same."""
    torch.manual_seed(0)
    sizes = {"channels": 32, "latent_channels": 32, "dim": 32, "codebook_size": 40, "resolution": 32, "num_blocks": 1}
    widths = {"encoder_multipliers": (1, 1, 1, 1, 1), "decoder_multipliers": (1, 1, 1, 1)}
    model = dqcore.DQVAE(dqcore.DQVAEConfig(**sizes, **widths)).eval()
    torch.save({"state_dict": dqcore.convert.dqvae_to_official(model)}, tmp_path / "theirs.ckpt")
    router = {
        "target": "modules.dynamic_modules.RouterDual.DualGrainFeatureRouter",
        "params": {"num_channels": 32, "normalization_type": "group-32", "gate_type": "2layer-fc-SiLu"},
    }
    config = {"kind": "dual", "router": router, "ch": 32, "ch_mult": [1] * 5, "z_channels": 32, "num_res_blocks": 1}
    config |= {"resolution": 32, "codebook_size": 40, "encoder_attn_resolutions": [2, 4], "decoder_ch_mult": [1] * 4}
    config |= {"decoder_attn_resolutions": [4], "position_type": "fourier+learned"}
    (tmp_path / "theirs.json").write_text(json.dumps(config))
    args = ("convert", tmp_path / "theirs.ckpt", "--config", tmp_path / "theirs.json", "--out", tmp_path / "ours")
    code, out, _ = run(*args)
    assert code == 0
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in out
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        found, expected = dqcore.DQVAE.from_pretrained(tmp_path / "ours")(image), model(image)
    assert "holds a config.json already" in fails(*args)
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=0, atol=1e-5)
