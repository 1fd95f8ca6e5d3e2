import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import dqcore
from dqcore.data.images import image_to_tensor, read_image
from dqcore.data.photos import sample_photos
from dqcore.inference import compare, encode_batch
from dqcore.inference.compare import Comparison
from dqcore.inference.encode_batch import EncodedImages, encode, why_not
from dqcore.inference.measure import evaluate_tokenizer
from dqcore.inference.peers import CODECS, Decibels, PeerTotals, ladders
from dqcore.inference.rate import StreamCost
from dqcore.inference.twin import compare_twin, within_bytes
from dqcore.metrics import psnr


@pytest.fixture(scope="module")
def photo():
    return image_to_tensor(read_image(sample_photos("heldout")[0]))


@pytest.mark.parametrize("index", [0, 1])
def test_the_best_file_within_the_bytes(photo, index):
    ladder = ladders(photo)[index]
    for limit in (1200, 2500):
        coded = ladder.within(limit)
        assert coded.fits and len(coded.data) <= limit
        assert len(ladder.codec.encode(ladder.image, coded.quality + 1)) > limit
        with Image.open(io.BytesIO(coded.data)) as image:
            assert image.format == ladder.codec.kind and image.size == (128, 128)


def test_where_no_file_is_small_enough_the_smallest_counts(photo):
    totals = PeerTotals(CODECS[0].name)
    coded = ladders(photo)[0].within(10)
    totals.add(photo, coded.pixels(), len(coded.data), coded.fits)
    found = totals.numbers()
    assert (coded.fits, coded.quality, found.too_large) == (False, 1, 1)
    assert found.bytes_per_image == len(coded.data) and found.bits_per_pixel == 8 * len(coded.data) / 128**2
    assert found.psnr == psnr(photo[None], coded.pixels()[None]).item() and found.ms_ssim is None


@pytest.mark.parametrize("preset", ["dqvae-dual-tiny", "dqvae-triple-tiny", "vqgan-f16-tiny"])
def test_codes_at_another_ratio_need_no_encoder(preset, photo):
    kind = dqcore.VQGAN if preset.startswith("vqgan") else dqcore.DQVAE
    model = kind.from_preset(preset, channels=8).eval()
    images = photo[None, :, :64, :96]
    encoded = EncodedImages(model, images)
    if kind is dqcore.DQVAE:
        model.encoder.forward = None  # another run would fail
    number = model.config.num_granularities
    counts = [int((4 ** encoded.at(detail).grain).sum()) for detail in (0, 0.5, 1)]
    regions = 64 * 96 // model.config.strides[0] ** 2
    assert counts[0] == regions and counts[2] == regions * 4 ** (number - 1)
    assert number == 1 or abs(counts[1] - (counts[0] + counts[2]) / 2) <= 4 ** (number - 1)


def test_the_encoding_is_the_models(model, photo):
    images = photo[None, :, :64, :96]
    with torch.no_grad():
        for options in ({}, {"ratio": 0.3}, {"num_codes": 40}):
            expected = encode(model, images, **options)
            found = EncodedImages(model, images).encoding(**options)
            assert torch.equal(found.codes, expected.codes) and torch.equal(found.grain, expected.grain)


def test_shown_photos_have_every_state(model, photo):
    comparison = Comparison(model, StreamCost.uniform(model.config), details=(0.0, 1.0), limit=2, keep=True)
    images = torch.stack([photo[:, :48, :48]] * 3)
    evaluate_tokenizer(model, [images], each=comparison)
    assert len(comparison.shown) == 2
    for shown in comparison.shown:
        assert [state.detail for state in shown.states] == [None, 0.0, 1.0]
        assert all(set(state.peers) == {"JPEG", "WebP"} for state in shown.states)
        assert [state.result.num_codes for state in shown.states[1:]] == [9, 36]
        for state in shown.states:
            coded = state.peers["WebP"]
            assert coded.fits == (len(coded.data) <= state.result.num_bytes)
    assert comparison.curve[1].psnr == comparison.shown[0].states[2].result.psnr
    assert comparison.peers[1].ssim > 0 and comparison.curve[1].peers[1].ssim is None  # a curve has PSNR alone
    assert comparison.own.ssim is not None


@pytest.mark.parametrize(("limit", "compared"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (9, 4), (None, 4)])
def test_the_limit_holds_over_all_batches(model, photo, limit, compared):
    comparison = Comparison(model, StreamCost.uniform(model.config), codecs=(), limit=limit, keep=True)
    images = torch.stack([photo[:, :32, :32]] * 2)
    numbers = evaluate_tokenizer(model, [images[:1], images, images[1:]], each=comparison)
    assert numbers.num_images == 4 and len(comparison.shown) == compared


def test_photos_are_kept_only_if_asked(model, photo):
    comparison = Comparison(model, StreamCost.uniform(model.config), codecs=())
    evaluate_tokenizer(model, [photo[None, :, :32, :32]], each=comparison)
    assert not comparison.shown


def test_as_many_bytes_as_the_twin_takes(model, photo):
    twin = dqcore.VQGAN.from_preset("vqgan-f8-tiny", channels=8).eval()
    cost, other = StreamCost.uniform(model.config), StreamCost.uniform(twin.config)
    images = photo[None, :, :64, :64]
    found, mine = compare_twin(model, cost, twin, other, [images])
    assert mine.bytes_per_image <= found.bytes_per_image and mine.too_large == 0
    encoding, size = within_bytes(EncodedImages(model, images), cost, int(found.bytes_per_image), 64, 64)
    assert size == mine.bytes_per_image
    assert size > 0.9 * found.bytes_per_image or bool((encoding.grain == 1).all())
    assert found.psnr == evaluate_tokenizer(twin, [images]).psnr


def test_a_photo_that_a_codec_cannot_hold_is_left_out():
    """A panorama wider than WebP allows: JPEG has its numbers, and WebP those of the other photos."""
    wide = torch.zeros(3, 2, CODECS[1].largest + 1)
    assert [ladder.codec.name for ladder in ladders(wide)] == ["JPEG"]
    assert [ladder.codec.name for ladder in ladders(wide[:, :, :40])] == ["JPEG", "WebP"]
    point = compare._Point([Decibels(codec.name) for codec in CODECS])
    for image in (wide, wide[:, :, :40]):
        result = SimpleNamespace(image=image, psnr=30.0, num_bytes=900)
        point.add(compare.State(None, result, {rung.codec.name: rung.within(900) for rung in ladders(image)}))
    assert [(peer.name, peer.left_out) for peer in point.numbers(0.0).peers] == [("JPEG", 0), ("WebP", 1)]
    alone = compare._Point([Decibels(codec.name) for codec in CODECS])
    alone.add(compare.State(None, SimpleNamespace(image=wide, psnr=30.0, num_bytes=900), {}))
    assert alone.numbers(0.0).peers == ()


def test_why_a_photo_is_passed_over(monkeypatch):
    config = SimpleNamespace(strides=(16, 8), num_granularities=2)
    assert why_not(config, 33, 32) == "" and why_not(config, 33, 32, num_codes=6) == ""
    assert "expected at least 6, one for each region of 32x33 pixels, got 5" in why_not(config, 33, 32, num_codes=5)
    monkeypatch.setattr(encode_batch, "MAX_PIXELS", 1000)
    assert "32x33 pixels are more than" in why_not(config, 33, 32) and not why_not(config, 33, 32, streams=False)


def test_each_photo_of_a_batch_has_its_own_result(model, photo):
    images = torch.stack([photo[:, :32, :32], -photo[:, 32:64, 32:64]])
    shown = []
    for batches in ([images], list(images.split(1))):
        comparison = Comparison(model, StreamCost.uniform(model.config), codecs=(), keep=True)
        evaluate_tokenizer(model, batches, each=comparison)
        shown.append([one.states[0].result for one in comparison.shown])
    for together, alone in zip(*shown, strict=True):
        assert torch.equal(together.padded, alone.padded) and torch.equal(together.image, alone.image)
        torch.testing.assert_close(together.reconstruction, alone.reconstruction, rtol=0, atol=1 / 127)


@pytest.mark.parametrize("details", [(-0.1,), (0.5, 1.1), (float("nan"),)])
def test_a_share_of_detail_lies_between_0_and_1(model, details):
    with pytest.raises(ValueError, match=r"ratios: expected numbers in \[0, 1\]"):
        Comparison(model, StreamCost.uniform(model.config), details=details)
    Comparison(model, StreamCost.uniform(model.config), details=(0, 1))


def test_a_fixed_number_of_codes_has_no_curve():
    fixed = dqcore.VQGAN.from_preset("vqgan-f16-tiny", channels=8).eval()
    with pytest.raises(ValueError, match="ratios: this tokenizer has one granularity"):
        Comparison(fixed, StreamCost.uniform(fixed.config), details=(0.5,))
    assert Comparison(fixed, StreamCost.uniform(fixed.config)).curve == []
