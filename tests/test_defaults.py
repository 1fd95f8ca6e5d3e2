"""What ``DynamicQuantizer(dim, K)`` does when its user names only the sizes, and the paper's settings by name."""

import torch

from dqcore import DQVAE, VQGAN, DynamicQuantizer
from dqcore.codebook import EMA, RandomRestart, Uniform


def settings(quantizer):
    return quantizer.codebook.decay, quantizer.initialisation, quantizer.restart, quantizer.commitment


def test_the_papers_settings():
    assert settings(DynamicQuantizer.paper(8, 19, 2)) == (0.99, Uniform(), None, 0.25)
    changed = DynamicQuantizer.paper(8, 19, learning=EMA(decay=0.5), restart=RandomRestart(), channel_last=True)
    assert settings(changed) == (0.5, Uniform(), RandomRestart(), 0.25) and changed.channel_last


def test_paper_builds_the_class_it_is_called_on():
    class Mine(DynamicQuantizer):
        pass

    assert type(Mine.paper(8, 19)) is Mine


def test_presets_keep_the_papers_settings():
    for model in (DQVAE.from_preset("dqvae-dual-tiny"), VQGAN.from_preset("vqgan-f16-tiny")):
        restart = RandomRestart() if model.config.restart else None
        assert settings(model.quantizer) == (0.99, Uniform(), restart, 0.25)


def test_defaults_work_before_any_training():
    quantizer = DynamicQuantizer(8, 64).eval()
    out = quantizer(torch.randn(2, 8, 16, 16))
    assert out.codes.unique().numel() > 1 and out.map.any()


def test_defaults_bring_every_code_into_use():
    """Far from the start's ``[-1/K, 1/K]``, where all features share few of the codes."""
    quantizer = DynamicQuantizer(4, 64)
    for _ in range(40):
        quantizer(torch.randn(4, 4, 16, 16) + 20)
    z = torch.randn(4, 4, 16, 16) + 20
    assert quantizer.eval()(z).codes.unique().numel() > 60
    assert quantizer(z).loss < 0.5  # of features whose variance is 1
