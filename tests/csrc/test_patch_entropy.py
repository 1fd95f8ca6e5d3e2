"""``patch_entropy`` by csrc's CUDA kernel, on a CPU, against the reference."""

import shutil

import pytest
import torch

from dqcore.ops.patch_entropy import patch_entropy_extension
from dqcore.ops.reference.patch_entropy import patch_entropy_reference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]
#: First and last bin, their number, sigma, and on how many bins of a side a pixel gives weight.
BINS = [
    (-1.0, 1.0, 32, 0.01, 1), (0.0, 1.0, 32, 0.01, 2), (-0.9, 0.7, 64, 0.01, 3), (-1.0, 1.0, 5, 0.3, 4),
    (-1.0, 1.0, 2, 0.3, 1), (-1.0, 1.0, 33, 0.0098, 1),
]  # fmt: skip


def textured(*shape, dtype=torch.float32):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1).to(dtype)


def close(images, patch_size, bins):
    expected = patch_entropy_reference(images.double(), patch_size, *bins[:4])
    found = patch_entropy_extension(images, patch_size, *bins)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("bins", BINS, ids=str)
@pytest.mark.parametrize(
    ("shape", "patch_size"), [((2, 3, 16, 24), 8), ((1, 1, 15, 9), 3), ((1, 3, 48, 32), 16), ((1, 1, 64, 128), 64)]
)
def test_any_bins(on_cpu, shape, patch_size, bins):
    close(textured(*shape), patch_size, bins)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_any_dtype_and_memory(on_cpu, dtype):
    """Contiguous, channels-last, a view with gaps, images that are one."""
    images = textured(3, 3, 24, 40, dtype=dtype)
    for given in (
        images,
        images.to(memory_format=torch.channels_last),
        images[:, :, ::3, ::5],
        images[:1].expand(3, -1, -1, -1),
    ):
        close(given, 8, BINS[0])


def test_flat_patches_and_what_no_bin_sees(on_cpu):
    """One value a patch, also half-way between centres, where rounding shows most, and at and beyond the ends."""
    values = torch.cat([torch.linspace(-1.1, 1.1, 23), (torch.arange(31) * 2 + 1) / 31 - 1, torch.tensor([-9.0, 9.0])])
    close(values[:, None, None, None].expand(-1, 3, 4, 4), 4, BINS[0])


def test_nan_and_infinity(on_cpu):
    images = torch.zeros(1, 1, 2, 4)
    images[..., 0, 0], images[..., 0, 2:] = torch.nan, torch.inf
    entropy = patch_entropy_extension(images, 2, *BINS[0]).flatten()
    assert entropy[0].isnan() and entropy[1].isfinite()


def test_single_pixels_and_no_image(on_cpu):
    close(textured(2, 3, 5, 7), 1, BINS[0])
    assert patch_entropy_extension(torch.zeros(0, 3, 16, 16), 8, *BINS[0]).shape == (0, 2, 2)
