"""The linear path from pixels to codes and back: colour from the first steps on."""

import pytest
import torch

from dqcore import DQVAE, VQGAN
from dqcore.errors import InputError
from dqcore.nn.decoder import Decoder
from dqcore.nn.encoder import Encoder

SIZES = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "codebook_size": 16}


def test_the_encoder_sees_the_quarters_of_each_cell():
    torch.manual_seed(0)
    encoder = Encoder((8, 4), 8, (1, 1, 1, 1), 1, (), 6, 4, linear_path=True)
    plain = Encoder((8, 4), 8, (1, 1, 1, 1), 1, (), 6, 4)
    plain.load_state_dict({k: v for k, v in encoder.state_dict().items() if not k.startswith("linear.")})
    images = torch.rand(2, 3, 16, 24)
    for stride, found, without, linear in zip((8, 4), encoder(images), plain(images), encoder.linear, strict=True):
        y, x, half = stride, 2 * stride, stride // 2  # the cell in the second row and the third column
        quarters = [
            images[1, :, y + i * half : y + (i + 1) * half, x + j * half : x + (j + 1) * half].mean((1, 2))
            for i in range(2)
            for j in range(2)
        ]
        vector = torch.stack(quarters, 1).flatten()  # channel, quarter
        expected = linear.weight[:, :, 0, 0] @ vector + linear.bias
        torch.testing.assert_close((found - without)[1, :, 1, 2], expected, atol=1e-5, rtol=1e-4)


def test_the_decoder_starts_without_it_and_writes_cells():
    torch.manual_seed(0)
    decoder = Decoder(8, 8, (1, 1, 1), 1, (), groups=4, linear_path=True)
    latent = torch.randn(1, 8, 3, 2)
    changed = latent.clone()
    changed[0, :, 2, 1] += 1
    linear = torch.nn.functional.pixel_shuffle(decoder.linear(changed) - decoder.linear(latent), 4)
    assert linear[0, :, 8:, 4:].abs().min() > 0 and linear[0, :, :8].abs().max() == 0 == linear[0, :, :, :4].abs().max()
    model = VQGAN.from_preset("vqgan-f16-small", **SIZES)
    assert model.decoder.stride == 16 and model.decoder.linear.weight.abs().max() == 0


@pytest.mark.parametrize("kind", ["dqvae", "vqgan"])
def test_colour_is_learned_in_thirty_steps(kind):
    torch.manual_seed(0)
    if kind == "dqvae":
        model = DQVAE.from_preset("dqvae-small", router="random", target_ratio=(0.1,), **SIZES)
    else:
        model = VQGAN.from_preset("vqgan-f16-small", **SIZES)
    colours = torch.rand(16, 3, 1, 1) * 2 - 1
    images = colours.expand(-1, -1, 32, 32)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        output = model(images)
        loss = (output.reconstruction - images).square().mean() + output.commitment_loss + output.budget_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chroma = output.reconstruction[:, 0] - output.reconstruction[:, 2]
    wanted = images[:, 0] - images[:, 2]
    chroma = chroma.detach()
    assert float((chroma.flatten() * wanted.flatten()).mean()) > 0.5 * float(wanted.square().mean())


def test_it_needs_cells_of_several_pixels():
    with pytest.raises(InputError, match="linear_path: expected strides of at least 2"):
        VQGAN.from_preset(
            "vqgan-f8-tiny", strides=(1,), encoder_multipliers=(1,), decoder_multipliers=(1,), linear_path=True
        )
