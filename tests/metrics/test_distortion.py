import math

import numpy as np
import pytest
import torch
import torchmetrics
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dqcore.data.images import image_to_tensor, tensor_to_image
from dqcore.metrics import ms_ssim, psnr, round_to_8bit, similarities, ssim


@pytest.fixture
def pair():
    images = torch.rand(3, 3, 24, 37) * 2 - 1
    return images, (images + 0.3 * torch.randn_like(images)).clamp(-1, 1)


def test_psnr_is_scikit_images(pair):
    expected = [peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=2) for x, y in zip(*pair, strict=True)]
    torch.testing.assert_close(psnr(*pair), torch.tensor(expected, dtype=torch.float64))


def test_psnr_is_torchmetrics(pair):
    options = {"data_range": 2.0, "dim": (1, 2, 3), "reduction": "none"}
    expected = torchmetrics.functional.image.peak_signal_noise_ratio(pair[1].double(), pair[0].double(), **options)
    torch.testing.assert_close(psnr(*pair), expected)


def _framed(size, inside):
    """Two pictures that differ inside a wide grey frame, so that what a library does at the border does not matter."""
    image, other = torch.zeros(2, 1, 3, size, size).unbind()
    middle = slice((size - inside) // 2, (size + inside) // 2)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9) * 2 - 1, size=(inside, inside), mode="bilinear")
    image[..., middle, middle] = smooth
    other[..., middle, middle] = (smooth + 0.3 * torch.randn_like(smooth)).clamp(-1, 1)
    return image, other


def test_ssim_is_scikit_images():
    options = {"data_range": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    image, other = _framed(64, 36)
    x, y = image[0].double().numpy(), other[0].double().numpy()
    expected = structural_similarity(x, y, channel_axis=0, full=True, **options)[1].mean()
    assert ssim(image, other).item() == pytest.approx(expected, abs=2e-6)


def test_ms_ssim_of_one_scale_after_the_other():
    """The product that Wang et al. define, with similarity and contrast of each scale computed here."""
    image, other = _framed(400, 40)
    found = ms_ssim(image, other)
    x, y, product = image, other, 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        full, contrast = _similarity(x[0].double().numpy(), y[0].double().numpy())
        product *= (full if scale == 4 else contrast) ** weight
        x, y = (torch.nn.functional.avg_pool2d(values, 2) for values in (x, y))
    assert found.item() == pytest.approx(product, abs=1e-5)


def _similarity(x, y):
    """Mean similarity of two pictures, and the mean of its contrast term over the places where the window fits."""

    def mean(values):
        return gaussian_filter(values, (0, 1.5, 1.5), truncate=3.5)

    mu_x, mu_y = mean(x), mean(y)
    contrast = (2 * (mean(x * y) - mu_x * mu_y) + 0.06**2) / (mean(x * x) - mu_x**2 + mean(y * y) - mu_y**2 + 0.06**2)
    full = contrast * (2 * mu_x * mu_y + 0.02**2) / (mu_x**2 + mu_y**2 + 0.02**2)
    return full.mean(), contrast[:, 5:-5, 5:-5].mean()


def test_both_similarities_are_those_of_torchmetrics():
    x = torch.rand(2, 3, 180, 200) * 2 - 1
    y = torch.stack([(x[0] + 0.3 * torch.randn_like(x[0])).clamp(-1, 1), -x[1]])  # contrast below 0 counts as 0
    library = torchmetrics.functional.image.multiscale_structural_similarity_index_measure
    expected = [library(b[None], a[None], data_range=2.0).double() for a, b in zip(x, y, strict=True)]
    similarity, scales = similarities(x, y)
    assert torch.equal(scales, torch.stack(expected)) and torch.equal(scales, ms_ssim(x, y))
    assert torch.equal(similarity, ssim(x, y)) and similarities(x[..., :100], y[..., :100])[1] is None


def test_ms_ssim_needs_five_scales():
    assert ms_ssim(torch.zeros(1, 3, 175, 400), torch.zeros(1, 3, 175, 400)) is None
    assert ms_ssim(torch.zeros(1, 3, 176, 176), torch.zeros(1, 3, 176, 176)).item() == pytest.approx(1)


def test_values_outside_the_range_are_clamped(pair):
    images, other = pair
    torch.testing.assert_close(psnr(images, other * 3), psnr(images, (other * 3).clamp(-1, 1)))


def test_equal_images(pair):
    assert psnr(pair[0], pair[0]).tolist() == [100.0] * 3
    torch.testing.assert_close(ssim(pair[0], pair[0]), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_each_image_stands_alone(pair, metric):
    torch.testing.assert_close(metric(*pair)[1:2], metric(pair[0][1:2], pair[1][1:2]), rtol=0, atol=0)


def test_rounding_is_that_of_a_saved_picture():
    values = torch.rand(3, 40, 50) * 2.4 - 1.2
    saved = image_to_tensor(tensor_to_image(values))
    assert torch.equal(round_to_8bit(values), saved)
    assert np.unique(round_to_8bit(values)).size <= 256 and math.isclose(float(saved.min()), -1)


@pytest.mark.parametrize("metric", [psnr, ssim, ms_ssim])
def test_shapes_must_agree(metric):
    with pytest.raises(ValueError, match="reconstructions: expected the shape"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))
    with pytest.raises(ValueError, match=r"images: expected \(B, C, H, W\), got \(3, 16, 16\)"):
        metric(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))
    for dtype, remedy in ((torch.uint8, r"dqcore\.data\.images\.uint8_to_float"), (torch.int64, "convert them")):
        whole, floats = torch.zeros(1, 3, 16, 16, dtype=dtype), torch.zeros(1, 3, 16, 16)
        for name, pair in {"images": (whole, floats), "reconstructions": (floats, whole)}.items():
            with pytest.raises(TypeError, match=rf"{name}: .* in \[-1, 1\], got {dtype}: {remedy}"):
                metric(*pair)


def test_ssim_needs_its_window():
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))
    assert ssim(torch.zeros(1, 3, 11, 11), torch.zeros(1, 3, 11, 11)).item() == pytest.approx(1)


def test_ms_ssim_does_not_hang_on_the_default_dtype():
    images = torch.rand(1, 3, 180, 180) * 2 - 1
    others = (images + 0.3 * torch.randn_like(images)).clamp(-1, 1)
    expected, default = ms_ssim(images, others), torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert torch.equal(ms_ssim(images, others), expected)
    finally:
        torch.set_default_dtype(default)
