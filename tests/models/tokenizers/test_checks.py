"""Mistakes with images: what is refused and how it is said, and what is warned of once."""

import copy
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import dqcore
from dqcore.data.images import uint8_to_float
from dqcore.models.tokenizers import checks

TINY = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "codebook_size": 16}
MODELS = {
    "dqvae": lambda: dqcore.DQVAE.from_preset("dqvae-dual-tiny", router_groups=4, **TINY),
    "vqgan": lambda: dqcore.VQGAN.from_preset("vqgan-f16-tiny", **TINY),
}


@pytest.fixture(params=MODELS)
def model(request, monkeypatch):
    monkeypatch.setattr(checks, "_once", set())
    return MODELS[request.param]().eval()


GOOD = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
MISTAKES = {
    "NHWC": (
        GOOD.permute(0, 2, 3, 1),
        r"images: expected \(B, 3, H, W\), got \(1, 32, 32, 3\); .*permute\(0, 3, 1, 2\)",
    ),
    "one image": (GOOD[0], r"one image is images\[None\]"),
    "HWC": (GOOD[0].permute(1, 2, 0), r"images.permute\(2, 0, 1\)\[None\]"),
    "grey": (GOOD[:, :1], "grey: images.expand"),
    "RGBA": (GOOD[:, [0, 1, 2, 0]], "without transparency"),
    "size": (GOOD[..., :30], r"images: expected height and width to be multiples of 16, .*pad_to_stride\(images, 16\)"),
    "uint8": (GOOD.byte(), r"images: expected a floating tensor .*uint8_to_float\(images\)"),
    "dtype": (GOOD.double(), "images: expected torch.float32, as the model, got torch.float64"),
    "device": (GOOD.to("meta"), "images: expected device cpu, as the model, got meta"),
    "list": ([GOOD[0]], "got list: torch.stack"),
    "array": (np.zeros((1, 3, 32, 32), np.float32), "images: expected a floating tensor .* got ndarray"),
    "picture": (Image.new("RGB", (32, 32)), r"got Image: dqcore.data.images.image_to_tensor\(image\)\[None\]"),
    "path": ("photo.jpg", r"read_image\(path\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_remedy(model, mistake):
    images, message = MISTAKES[mistake]
    for call in (model.encode, model):
        with pytest.raises((ValueError, TypeError), match=message):
            call(images)


def test_the_remedies_work(model):
    model.encode(GOOD[0][None])
    model.encode(GOOD.permute(0, 2, 3, 1).permute(0, 3, 1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        model.encode(GOOD.bfloat16())  # autocast has its own dtypes


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((GOOD + 1) / 2, r"for values in \[0, 1\] pass 2 \* images - 1, these lie in \[0.00, 1.00\]"),
        ((GOOD + 1) * 127.5, r"for 8-bit values pass images / 127.5 - 1, these lie in \[0, 255\]"),
        (GOOD * 2.5, r"normalised by mean and deviation"),
    ],
)
def test_another_range_warns_once_at_the_users_line(model, images, message):
    with pytest.warns(UserWarning, match=rf"images: expected values in \[-1, 1\]; .*{message}") as caught:
        model(images)
        model.encode(images)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_good_images_are_quiet(model):
    bright = uint8_to_float(torch.randint(128, 256, (1, 3, 32, 32), dtype=torch.uint8))
    overshoot = GOOD * 1.05  # of a resized photo
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for images in (GOOD, bright, overshoot, torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5)):
            model.encode(images)


def test_values_are_read_neither_while_compiling_nor_under_functorch(model, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "aminmax", None)
    weight = model.quant_conv.weight
    check = torch.compile(lambda images: checks.check_images(images, 16, weight) or images + 1, backend="eager")
    assert torch.equal(check(GOOD), GOOD + 1)
    torch.func.grad(lambda images: checks.check_images(images, 16, weight) or images.sum())(GOOD)


def test_on_a_gpu_only_the_first_images_are_looked_at(monkeypatch):
    """The meta device stands for one."""
    looked = []
    monkeypatch.setattr(checks, "_once", set())
    monkeypatch.setattr(checks, "_unreadable", lambda images: False)
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda self: looked.append(1) or torch.tensor([-1.0, 1.0]))
    for device in ("meta", "meta", "cpu", "cpu"):
        checks._warn_of_range(torch.zeros(1, 3, 2, 2, device=device))
    assert len(looked) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, e: m.decode(e), "codes: .*got Encoding: pass its .codes and .grain"),
        (lambda m, e: m.decode(dqcore.pack_codes(e.codes, e.grain)), "codes: .*pass what dqcore.unpack_codes gives"),
        (lambda m, e: m.decode(e.codes, e.grain.tolist()), "grain: expected shape .* got list"),
        (lambda m, e: m.decode(e.codes.to("meta"), e.grain), "codes: expected device cpu, as the model, got meta"),
        (lambda m, e: m.decode_quantized(e.codes), r"quantized: .* got torch.int64; decode\(codes\)"),
        (lambda m, e: m.decode_quantized(e.quantized.movedim(1, -1)), r"quantized: expected a map \(B, 8, H, W\)"),
    ],
)
def test_mistakes_in_decoding(model, call, message):
    with torch.no_grad(), pytest.raises((ValueError, TypeError), match=message):
        call(model, model.encode(GOOD))


def test_weights_that_are_elsewhere_until_they_compute_are_no_mistake(model):
    """Libraries that offload keep them on the meta device until a hook fetches them."""
    fetched = dict(model.named_parameters()) | dict(model.named_buffers())
    offloaded = copy.deepcopy(model).to("meta")
    offloaded.encoder.register_forward_pre_hook(
        lambda module, arguments: offloaded.load_state_dict(fetched, assign=True, strict=False) and None
    )
    assert torch.equal(offloaded(GOOD).codes, model(GOOD).codes)
