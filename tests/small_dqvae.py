"""Small DQ-VAEs, images for them, and a count of codes."""

import torch

from dqcore import DQVAE

TINY = ["dqvae-dual-tiny", "dqvae-dual-entropy-tiny", "dqvae-triple-tiny"]


def build(name, **overrides):
    """A model whose codes spread over the whole codebook, as they do after training."""
    model = DQVAE.from_preset(name, **overrides).eval()
    with torch.no_grad():
        features = model.quant_conv(model.encoder(detailed(2))[-1])
        model.quantizer.codebook.weight.normal_().mul_(features.std()).add_(features.mean())
    return model


def detailed(batch, height=64, width=96):
    """Images whose regions differ in how much they hold."""
    amplitude = torch.rand(batch, 1, height // 8, width // 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return amplitude * (2 * torch.rand(batch, 3, height, width) - 1)


def num_codes(grain):
    return (4**grain).flatten(1).sum(1).tolist()
