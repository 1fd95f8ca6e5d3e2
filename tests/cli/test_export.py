"""``dqcore export``."""

import torch

from dqcore.models.tokenizers.vqgan import VQGAN, VQGANConfig


def test_export(run, fails, tmp_path):
    sizes = {"channels": 4, "latent_channels": 4, "dim": 4, "codebook_size": 12, "num_blocks": 1, "groups": 2}
    sizes |= {"encoder_multipliers": (1, 1), "decoder_multipliers": (1, 1), "middle_attention": False}
    torch.manual_seed(0)
    model = VQGAN(VQGANConfig(strides=(2,), encoder_attention=(), decoder_attention=(), resolution=16, **sizes))
    model.save_pretrained(tmp_path / "model")
    words = ("export", tmp_path / "model", "--out", tmp_path / "out", "--format", "torch", "--height", 4, "--width", 6)
    code, out, _ = run(*words)
    assert code == 0 and "100.00% of the codes agree" in out and "encoder.pt2" in out
    assert torch.export.load(tmp_path / "out" / "decoder.pt2").module()(torch.zeros(1, 2, 3).long()).shape == (
        1,
        3,
        4,
        6,
    )
    assert "holds encoder.pt2 already" in fails(*words)
