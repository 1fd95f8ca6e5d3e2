import pytest
import torch

from dqcore import VQGAN, VQGANConfig
from dqcore.models.tokenizers.vqgan import PRESETS

TINY = ["vqgan-f16-tiny", "vqgan-f8-tiny"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_construct(name):
    with torch.device("meta"):
        model = VQGAN.from_preset(name)
    assert model.config == PRESETS[name]
    assert f"-f{model.config.strides[0]}" in name


def test_f8_has_the_decoder_of_dqvae():
    with torch.device("meta"):
        model = VQGAN.from_preset("vqgan-f8", position="fourier+learned")
    assert sum(parameter.numel() for parameter in model.decoder.parameters()) == 14_397_571


@pytest.mark.parametrize("name", TINY)
def test_encode_decode_forward(name):
    model = VQGAN.from_preset(name).eval()
    images = 2 * torch.rand(2, 3, 32, 80) - 1
    stride = model.config.strides[0]
    encoding, output = model.encode(images), model(images)
    assert encoding.codes.shape == encoding.grain.shape == (2, 32 // stride, 80 // stride)
    assert not encoding.grain.any()
    assert torch.equal(encoding.codes, output.codes)
    torch.testing.assert_close(model.decode(encoding.codes, encoding.grain), output.reconstruction)
    assert output.reconstruction.shape == images.shape
    assert output.budget_loss == 0


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_every_parameter(name):
    model = VQGAN.from_preset(name)
    output = model(2 * torch.rand(2, 3, 32, 32) - 1)
    (output.reconstruction.square().mean() + output.commitment_loss).backward()
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)


def test_errors():
    with pytest.raises(ValueError, match="strides: expected one stride"):
        VQGANConfig(strides=(16, 8), decoder_multipliers=(1, 1, 2, 2))
    with pytest.raises(ValueError, match="multiples of 16"):
        VQGAN.from_preset("vqgan-f16-tiny")(torch.zeros(1, 3, 32, 24))
