import pytest
import torch

from dqcore.nn import Decoder, Encoder


@pytest.mark.parametrize("strides", [(16, 8), (32, 16, 8), (16,), (8,), (4, 2)], ids=str)
def test_shapes(strides):
    levels = strides[0].bit_length()
    encoder = Encoder(strides, 8, (1,) * (levels - 1) + (2,), 1, (strides[0],), 12, groups=4)
    maps = encoder(torch.randn(2, 3, 64, 96))
    assert [tuple(values.shape) for values in maps] == [(2, 12, 64 // stride, 96 // stride) for stride in strides]


def test_finer_maps_do_not_see_deeper_levels():
    encoder = Encoder((16, 8), 8, (1, 1, 1, 1, 2), 1, (), 8, groups=4)
    images = torch.randn(1, 3, 32, 32)
    coarse, fine = encoder(images)
    with torch.no_grad():
        for parameter in encoder.levels[4].parameters():
            parameter.add_(0.1)
    changed_coarse, changed_fine = encoder(images)
    assert torch.equal(fine, changed_fine)
    assert not torch.equal(coarse, changed_coarse)


def test_attention_is_placed_by_stride():
    encoder = Encoder((16, 8), 8, (1,) * 5, 2, (8, 16), 8, groups=4)
    assert [len(level.attentions) for level in encoder.levels] == [0, 0, 0, 2, 2]
    decoder = Decoder(8, 8, (1,) * 4, 2, (8,), groups=4)
    assert [len(level.attentions) for level in decoder.levels] == [0, 0, 0, 3]


def test_decoder_shape_and_gradients():
    decoder = Decoder(6, 8, (1, 2, 2), 1, (4,), "fourier+learned", grid_size=4, groups=4)
    images = decoder(torch.randn(2, 6, 5, 3))
    assert images.shape == (2, 3, 20, 12)
    images.square().sum().backward()
    assert all(parameter.grad.any() for parameter in decoder.parameters())


def test_a_stem_makes_squares_of_pixels_channels():
    encoder = Encoder((16, 8), 8, (1, 2, 2), 1, (), 6, groups=4, stem=4, middle_attention=False)
    decoder = Decoder(6, 8, (1, 2), 1, (), groups=4, stem=4, middle_attention=False)
    assert encoder.conv_in.in_channels == decoder.conv_out.out_channels == 48
    maps = encoder(torch.randn(1, 3, 32, 48))
    assert [tuple(values.shape) for values in maps] == [(1, 6, 2, 3), (1, 6, 4, 6)]
    assert decoder(maps[1]).shape == (1, 3, 32, 48)
    assert not any("attention" in name for name, _ in (*encoder.named_parameters(), *decoder.named_parameters()))


def test_a_stem_moves_attention_with_the_strides():
    encoder = Encoder((16, 8), 8, (1, 1, 1), 2, (8,), 8, groups=4, stem=4)
    assert [len(level.attentions) for level in encoder.levels] == [0, 2, 0]
