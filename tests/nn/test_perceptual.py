import importlib.util
import socket
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dqcore.errors import InputError
from dqcore.nn.perceptual import VGG16_FILE, PerceptualLoss, PerceptualUnavailableError

WIDTHS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
TAPS = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    state, before = {}, 3
    for index, width in WIDTHS.items():
        layer = nn.Conv2d(before, width, 3)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        state |= {f"features.{index}.weight": layer.weight.detach(), f"features.{index}.bias": layer.bias.detach()}
        before = width
    return state


@pytest.fixture(scope="module")
def weights(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg.pth"
    torch.save({**backbone, "classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


def _by_hand(backbone, heads, images, reconstruction):
    """LPIPS from its definition: unit-normalised features, squared differences, weighted, averaged over space."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def features(x):
        x = (x - shift.view(3, 1, 1)) / scale.view(3, 1, 1)
        for index in WIDTHS:
            if index in (5, 10, 17, 24):
                x = nn.functional.max_pool2d(x, 2)
            x = nn.functional.conv2d(
                x, *(backbone[f"features.{index}.{part}"] for part in ("weight", "bias")), padding=1
            )
            x = x.relu()
            if index in TAPS:
                yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    pairs = zip(features(images), features(reconstruction), heads, strict=True)
    return sum(((a - b).square() * head.view(-1, 1, 1)).sum(1).mean((1, 2)) for a, b, head in pairs)


def test_equals_its_definition_without_network_or_output(weights, backbone, monkeypatch, capfd):
    monkeypatch.setattr(socket, "socket", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = PerceptualLoss(weights)
    assert capfd.readouterr() == ("", "")
    images, other = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    heads = [getattr(loss.network, f"lin{level}").model[1].weight for level in range(5)]
    assert all((head >= 0).all() and head.sum() > 0 for head in heads)
    torch.testing.assert_close(loss(images, other), _by_hand(backbone, heads, images, other))
    assert (loss(images, images) == 0).all()


def test_is_frozen_and_never_drops_out(weights):
    loss = PerceptualLoss(weights).train()
    images, other = torch.rand(2, 1, 3, 32, 32)
    other.requires_grad_()
    assert torch.equal(loss(images, other), loss(images, other))
    loss(images, other).sum().backward()
    assert other.grad.abs().sum() > 0 and not any(p.requires_grad for p in loss.parameters())


def test_float32_under_autocast(weights):
    loss = PerceptualLoss(weights)
    images, other = torch.rand(2, 1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        distance = loss(images, other.bfloat16())
    assert distance.dtype == torch.float32
    assert torch.equal(distance, loss(images, other.bfloat16().float()))


def test_reads_safetensors_and_the_hub_cache(weights, backbone, tmp_path, monkeypatch):
    images, other = torch.rand(2, 1, 3, 32, 32)
    expected = PerceptualLoss(weights)(images, other)
    save_file({key.removeprefix("features."): value for key, value in backbone.items()}, tmp_path / "vgg.safetensors")
    assert torch.equal(PerceptualLoss(tmp_path / "vgg.safetensors")(images, other), expected)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / VGG16_FILE).symlink_to(weights)
    assert torch.equal(PerceptualLoss()(images, other), expected)


def test_one_line_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(PerceptualUnavailableError, match="--perceptual none") as error:
        PerceptualLoss()
    message = str(error.value)
    assert "\n" not in message and VGG16_FILE in message and str(tmp_path) in message
    with pytest.raises(PerceptualUnavailableError, match="vgg_weights: no such file"):
        PerceptualLoss(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(PerceptualUnavailableError, match=r"text\.pth: not a file of weights"):
        PerceptualLoss(tmp_path / "text.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(PerceptualUnavailableError, match=r"not VGG16's: 0\.weight is missing or misshapen"):
        PerceptualLoss(tmp_path / "other.pth")
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PerceptualUnavailableError, match=r"pip install 'dqcore\[perceptual\]'"):
        PerceptualLoss()


def test_images_that_are_too_small_are_named(weights):
    images = torch.zeros(1, 3, 15, 40)
    with pytest.raises(InputError, match=r"images: LPIPS needs 16 x 16 pixels, got \(15, 40\)"):
        PerceptualLoss(weights)(images, images)
