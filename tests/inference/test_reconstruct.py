import numpy as np
import pytest
import torch

from dqcore import pack_codes
from dqcore.inference.rate import StreamCost
from dqcore.inference.reconstruct import pad_to_stride, reconstruct
from dqcore.inference.sample import decode_sequence
from dqcore.metrics import psnr, round_to_8bit


def test_padding_repeats_the_border():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    padded = pad_to_stride(image, 4)
    assert padded.shape == (1, 1, 4, 4)
    assert torch.equal(padded[0, 0, 1:, 3], torch.full((3,), 5.0))
    assert torch.equal(padded[:, :, :2, :3], image)


def test_any_size_is_reconstructed(model):
    image = torch.rand(3, 35, 50) * 2 - 1
    result = reconstruct(model, image)
    assert result.reconstruction.shape == image.shape
    assert result.padded.shape == (3, 48, 64)
    assert result.grain.shape == (3, 4)
    with torch.no_grad():
        whole = round_to_8bit(model(result.padded[None]).reconstruction)[0, :, :35, :50]
    torch.testing.assert_close(result.reconstruction, whole, rtol=0, atol=1 / 127)
    assert result.psnr == pytest.approx(psnr(image[None], whole[None]).item(), abs=1e-2)
    assert result.fixed_bits_per_pixel == pytest.approx((result.num_codes * 8 + 12) / (35 * 50))
    assert result.num_bytes == StreamCost.uniform(model.config).bytes_of(result.codes, result.grain, 35, 50)
    assert result.bits_per_pixel == 8 * result.num_bytes / (35 * 50)
    assert reconstruct(model, image, num_codes=30).num_codes == 30


@pytest.mark.parametrize("image", [None, "photo.png", 3, [1], torch.zeros(3, 8, 8).long(), torch.zeros(3, 8, 8).bool()])
def test_what_is_no_image_is_named(model, image):
    with pytest.raises(TypeError, match=r"^image: expected"):
        reconstruct(model, image)


@pytest.mark.parametrize("shape", [(), (3,), (8, 8), (1, 3, 8, 8), (4, 8, 8), (3, 0, 8)])
def test_another_shape_is_named(model, shape):
    with pytest.raises(ValueError, match=r"^image: expected"):
        reconstruct(model, torch.zeros(shape))


def test_images_may_be_decoded_in_batches_of_any_size(model):
    encoding = model.encode(torch.zeros(2, 3, 32, 32))
    sequence = pack_codes(encoding.codes, encoding.grain, num_granularities=2)
    whole = decode_sequence(model, sequence)
    for size in (np.int64(1), 10**30):
        torch.testing.assert_close(decode_sequence(model, sequence, size), whole)
