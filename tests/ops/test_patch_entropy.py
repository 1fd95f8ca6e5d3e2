import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.torch_version import TorchVersion

import dqcore
from dqcore.ops import patch_entropy
from dqcore.ops.cpu import patch_entropy as cpu

RECORDED = Path(__file__).parents[1] / "fixtures" / "patch_entropy.safetensors"
OPTIONS = [
    {},
    {"bins": (0.0, 1.0)},
    {"sigma": 0.1},
    {"num_bins": 2, "sigma": 0.5},
    {"num_bins": 70, "bins": (-0.9, 0.7)},
    {"num_bins": 5, "sigma": 2.0},
]


def dense(images, patch_size, bins=(-1.0, 1.0), num_bins=32, sigma=0.01):
    """The formula as the paper's code has it, with its epsilons, in float64: every patch, pixel and bin."""
    images = images.double()
    grey = (
        (images * torch.tensor([0.2989, 0.5870, 0.1140]).to(images)[:, None, None]).sum(1)
        if images.shape[1] == 3
        else images[:, 0]
    )
    patches = grey.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size).flatten(3)
    centres = torch.linspace(*bins, num_bins, dtype=torch.float64, device=images.device)
    share = torch.exp(-0.5 * ((patches[..., None] - centres) / sigma) ** 2).mean(-2)
    share = share / (share.sum(-1, keepdim=True) + 1e-40) + 1e-40
    return -(share * share.log()).sum(-1)


def textured(*shape, device="cpu", dtype=torch.float32):
    return (torch.rand(*shape, device=device) * 2 - 1).to(dtype)


def close(entropy, expected):
    """Within 1e-5 of what was computed in float64, wherever that was."""
    return (entropy.double().cpu() - expected.cpu()).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("shape", "patch_size"), [((2, 3, 16, 24), 8), ((1, 1, 15, 9), 3), ((3, 3, 7, 1), 1)], ids=str)
def test_matches_reference(route, shape, patch_size, dtype):
    images = textured(*shape, device=route, dtype=dtype).to(memory_format=torch.channels_last)
    entropy = patch_entropy(images, patch_size)
    assert entropy.dtype == torch.float32
    assert entropy.shape == (shape[0], shape[2] // patch_size, shape[3] // patch_size)
    assert close(entropy, dense(images, patch_size))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(route, options):
    images = textured(2, 3, 16, 16, device=route)
    assert close(patch_entropy(images, 8, **options), dense(images, 8, **options))


def test_flat_patches(route):
    """One value a patch, also half-way between centres, where rounding shows most, and at and beyond the ends."""
    values = torch.cat([torch.linspace(-1.1, 1.1, 23), (torch.arange(31) * 2 + 1) / 31 - 1, torch.tensor([-9.0, 9.0])])
    images = values.to(route)[:, None, None, None].expand(-1, 3, 4, 4)
    assert close(patch_entropy(images, 4), dense(images, 4))


@pytest.mark.parametrize("patch_size", [8, 16])
def test_matches_recording(route, patch_size):
    recorded = load_file(RECORDED)
    entropy = patch_entropy(recorded["entropy.image"].to(route), patch_size)
    assert close(entropy, recorded[f"entropy.patch{patch_size}"].to(route))


def test_dark_images(route):
    """Bins that begin at 0 do not see anything darker than mid-grey; the default ones do."""
    dark = textured(1, 3, 16, 16, device=route) * 0.4 - 0.6
    assert patch_entropy(dark, 16).item() > 2
    assert patch_entropy(dark, 16, bins=(0.0, 1.0)).item() == 0


def test_nan_and_infinity(route):
    if dqcore.backends.route(torch.device("cpu")) == "gpu" and TorchVersion(version("triton")) < (3, 8):
        pytest.skip("the maximum of NaN and a number is a number on GPUs, and NaN in the interpreter of older Tritons")
    images = torch.zeros(1, 1, 2, 4, device=route)
    images[..., 0, 0], images[..., 0, 2:] = torch.nan, torch.inf
    entropy = patch_entropy(images, 2).flatten()
    assert entropy[0].isnan()
    assert entropy[1].isfinite()


def test_blocks_change_nothing(monkeypatch):
    images = textured(3, 3, 24, 40)
    whole = patch_entropy(images, 8)
    for pixels in (64, 200, 1200):
        monkeypatch.setattr(cpu, "PIXELS", pixels)
        assert torch.equal(patch_entropy(images, 8), whole)


def test_empty(route):
    assert patch_entropy(torch.zeros(0, 3, 16, 16, device=route), 8).shape == (0, 2, 2)


def test_has_no_gradient():
    assert not patch_entropy(textured(1, 3, 8, 8).requires_grad_(), 8).requires_grad


def test_opcheck():
    torch.library.opcheck(torch.ops.dqcore.patch_entropy.default, (textured(1, 3, 8, 8), 4, -1.0, 1.0, 32, 0.01))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 16, 16), {}, "images: expected 4 dimensions"),
        ((1, 2, 16, 16), {}, "images: expected 1 or 3 channels"),
        ((1, 3, 16, 12), {}, "patch_size: expected a divisor"),
        ((1, 3, 16, 16), {"patch_size": 0}, "patch_size: expected a divisor"),
        ((1, 3, 16, 16), {"bins": (1.0, -1.0)}, "bins: expected"),
        ((1, 3, 16, 16), {"num_bins": 1}, "num_bins: expected"),
        ((1, 3, 16, 16), {"sigma": 0.0}, "sigma: expected"),
    ],
)
def test_invalid_input(shape, options, message):
    with pytest.raises(ValueError, match=message):
        patch_entropy(torch.zeros(shape), **{"patch_size": 8, **options})


def test_invalid_dtype():
    with pytest.raises(TypeError, match="images: expected float16"):
        patch_entropy(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 8)


def test_compiles():
    images = textured(2, 3, 16, 16)
    compiled = torch.compile(patch_entropy, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(images, 8), patch_entropy(images, 8))


def test_planes_may_lie_far_apart(route):
    """The third plane of an image begins 2^31 numbers behind the first; none of the memory between is touched."""
    apart = torch.empty(2**31 + 256, dtype=torch.float16, device=route).as_strided((1, 3, 16, 16), (0, 2**30, 16, 1))
    images = textured(1, 3, 16, 16, device=route, dtype=torch.float16)
    assert torch.equal(patch_entropy(apart.copy_(images), 8), patch_entropy(images, 8))


@pytest.mark.parametrize(
    ("options", "numel", "there", "expected"),
    [
        ({}, 1, True, "extension"),
        ({"sigma": 0.04}, 1, True, "extension"),  # 4 bins on either side
        ({"num_bins": 64}, 1, True, "extension"),
        ({"patch_size": 64}, 1, True, "extension"),
        ({}, 1, False, "triton"),
        ({"sigma": 0.05}, 1, True, "triton"),
        ({"num_bins": 65}, 1, True, "triton"),
        ({"patch_size": 65}, 1, True, "triton"),
        ({}, 2**31 * 64, True, "triton"),  # patches that 31 bits do not count
    ],
)
def test_the_extension_takes_what_it_can(monkeypatch, options, numel, there, expected):
    pytest.importorskip("triton")
    from dqcore.kernels import patch_entropy as kernels

    op = sys.modules["dqcore.ops.patch_entropy"]
    monkeypatch.setattr(dqcore.backends, "available", lambda kernel, device: there)
    monkeypatch.setattr(op, "patch_entropy_extension", lambda *args: "extension")
    monkeypatch.setattr(kernels, "patch_entropy_fwd", lambda *args: "triton")
    images = SimpleNamespace(device=torch.device("cuda", 0), numel=lambda: numel)
    given = {"patch_size": 8, "low": -1.0, "high": 1.0, "num_bins": 32, "sigma": 0.01} | options
    assert op._gpu(images, **given) == expected
