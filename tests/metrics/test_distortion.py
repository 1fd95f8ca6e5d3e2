import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dqcore.metrics import psnr, ssim


@pytest.fixture
def pair():
    images = torch.rand(3, 3, 24, 37) * 2 - 1
    return images, (images + 0.3 * torch.randn_like(images)).clamp(-1, 1)


def test_psnr_is_scikit_images(pair):
    expected = [peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=2) for x, y in zip(*pair, strict=True)]
    torch.testing.assert_close(psnr(*pair), torch.tensor(expected, dtype=torch.float64))


def test_psnr_of_validation_is_finite_and_float32(pair):
    images, other = pair
    options = {"dtype": torch.float32, "smallest_error": 1e-10}
    expected = 10 * torch.log10(4 / (images - other).square().mean((1, 2, 3)).clamp_min(1e-10))
    assert torch.equal(psnr(images, other, **options), expected)
    assert torch.equal(psnr(images, images, **options), torch.full((3,), 4e10).log10() * 10)


def test_ssim_is_scikit_images(pair):
    options = {"data_range": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = []
    for x, y in zip(*pair, strict=True):
        maps = structural_similarity(x.double().numpy(), y.double().numpy(), channel_axis=0, full=True, **options)[1]
        expected.append(maps[:, 5:-5, 5:-5].mean())  # where the window fits
    torch.testing.assert_close(ssim(*pair), torch.tensor(expected, dtype=torch.float64))


def test_values_outside_the_range_are_clamped(pair):
    images, other = pair
    torch.testing.assert_close(psnr(images, other * 3), psnr(images, (other * 3).clamp(-1, 1)))


def test_equal_images(pair):
    assert psnr(pair[0], pair[0]).isinf().all()
    torch.testing.assert_close(ssim(pair[0], pair[0]), torch.ones(3, dtype=torch.float64))


def test_each_image_stands_alone(pair):
    torch.testing.assert_close(ssim(*pair)[1:2], ssim(pair[0][1:2], pair[1][1:2]), rtol=0, atol=0)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_shapes_must_agree(metric):
    with pytest.raises(ValueError, match="reconstructions: expected the shape"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))


def test_ssim_needs_its_window():
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))
