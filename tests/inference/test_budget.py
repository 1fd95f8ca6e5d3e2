"""Targets: met from below, with one pass of the encoder."""

import pytest
import torch

import dqcore
from dqcore.errors import InputError
from dqcore.inference.budget import ByteBudget, CodeBudget, RouterBudget, budget_of
from dqcore.inference.codec import Codec
from dqcore.stream import CodeTables


@pytest.fixture(scope="module", params=["dqvae-dual-tiny", "dqvae-dual-entropy-tiny", "dqvae-triple-tiny"])
def codec(request):
    torch.manual_seed(0)
    model = dqcore.DQVAE.from_preset(request.param, channels=8, latent_channels=16, dim=16).eval()
    tables = CodeTables.uniform(256, model.config.num_granularities)
    return Codec(model, (tables,), "ab" * 32)


def image_of(height, width):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height)) * 2 - 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_bytes_are_met_from_below(codec, share):
    image, size = image_of(160, 192), (150, 190)
    runs = []
    hook = codec.model.encoder.register_forward_hook(lambda *_: runs.append(1))
    coarser = (0.0,) * (codec.model.config.num_granularities - 2)
    least, most = (len(RouterBudget((*coarser, fine)).encode(codec, image, size).data) for fine in (0.0, 1.0))
    limit = int(least + share * (most - least))
    runs.clear()
    coded = ByteBudget(limit).encode(codec, image, size)
    hook.remove()
    assert len(runs) == 1
    assert 0.98 * limit <= len(coded.data) <= limit
    decoded = codec.read(coded.data)
    assert torch.equal(decoded.codes, coded.codes) and torch.equal(decoded.grain, coded.grain)
    rate = ByteBudget(8 * limit / 150 / 190 + 1e-9, per_pixel=True).encode(codec, image, size)
    assert rate.data == coded.data


def test_bytes_beyond_reach(codec):
    image, size = image_of(64, 96), (64, 96)
    assert int(ByteBudget(10**6).encode(codec, image, size).grain.min()) == codec.model.config.num_granularities - 1
    with pytest.raises(InputError, match="bytes are needed for 96x64 pixels, 10 are allowed"):
        ByteBudget(10).encode(codec, image, size)


def test_choices_are_what_encode_gives(codec):
    image, number = image_of(96, 128), codec.model.config.num_granularities
    choices = codec.model.choices(image)
    assert torch.equal(choices.at(choices.grain), codec.model.encode(image).codes)
    ratio = (0.25,) * (number - 1)
    encoding = codec.model.encode(image, ratio=ratio)
    assert torch.equal(choices.at(encoding.grain), encoding.codes)
    if codec.model.config.router == "feature":  # it refines what has a score above 0
        count = int((choices.scores > 0).sum())
        assert torch.equal(choices.refined(choices.refinements()[0, :count]), choices.grain)


def test_codes_by_size_and_exactly(codec):
    image, size = image_of(96, 128), (90, 120)
    found = int((4 ** CodeBudget(15_000, per_megapixel=True).encode(codec, image, size).grain).sum())
    assert 162 - 3 < found <= 162
    regions = RouterBudget().encode(codec, image, size).grain.numel()
    assert int((4 ** CodeBudget(regions + 30, exact=True).encode(codec, image, size).grain).sum()) == regions + 30
    with pytest.raises(InputError, match=rf"the nearest are {regions + 30} or {regions + 33}"):
        CodeBudget(regions + 31, exact=True).encode(codec, image, size)
    most = regions * 4 ** (codec.model.config.num_granularities - 1)
    with pytest.raises(InputError, match=f"the nearest are {most}, all regions being fine"):
        CodeBudget(most + 1, exact=True).encode(codec, image, size)


def test_a_fixed_length_tokenizer_has_no_choice():
    model = dqcore.VQGAN.from_preset("vqgan-f8-tiny").eval()
    codec = Codec(model, (CodeTables.uniform(256, 1),), "ab" * 32)
    with pytest.raises(InputError, match="one granularity"):
        ByteBudget(100).encode(codec, image_of(64, 64), (64, 64))


def test_one_budget_at_a_time():
    assert budget_of() == RouterBudget() and budget_of(bpp=0.1) == ByteBudget(0.1, per_pixel=True)
    for options, match in (
        ({"ratio": 0.5, "bpp": 1}, "ratio, bpp: expected one"),
        ({"num_bytes": 0}, "bytes: expected more than 0"),
        ({"per_megapixel": True}, "per_megapixel: expected num_codes"),
    ):
        with pytest.raises(InputError, match=match):
            budget_of(**options)
