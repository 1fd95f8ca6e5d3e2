import pytest
import torch

import dqcore
from dqcore.inference import evaluate_tokenizer
from dqcore.inference.rate import StreamCost
from dqcore.metrics import bits_per_pixel, codes_per_image, psnr, round_to_8bit, spearman, ssim
from dqcore.ops import patch_entropy


@pytest.fixture
def images():
    smooth = torch.nn.functional.interpolate(torch.rand(5, 3, 4, 4) * 2 - 1, size=(64, 48), mode="bilinear")
    noise = torch.randn(5, 3, 64, 48) * torch.linspace(0, 0.8, 48)
    return (smooth + noise).clamp(-1, 1)


def test_numbers_are_those_of_all_images_together(model, images):
    found = evaluate_tokenizer(model, images.split(2))
    with torch.no_grad():
        output = model(images)
    grain, shown = output.grain, round_to_8bit(output.reconstruction)
    assert found.num_images == 5
    assert found.psnr == pytest.approx(psnr(images, shown).mean().item(), abs=1e-3)
    assert found.ssim == pytest.approx(ssim(images, shown).mean().item(), abs=1e-4)
    assert found.codes_per_image == codes_per_image(grain).double().mean().item()
    assert found.fixed_bits_per_pixel == pytest.approx(bits_per_pixel(grain, 256, 2, 64 * 48).mean().item())
    assert found.usage == output.codes.unique().numel() / 256
    assert found.fine_ratio == pytest.approx(grain.double().mean().item())
    assert sum(found.code_counts) == codes_per_image(grain).sum().item()
    assert found.rank_correlation == pytest.approx(spearman(grain, patch_entropy(images, 16)))
    assert found.lpips is None and found.ms_ssim is None
    cost = StreamCost.uniform(model.config)
    written = sum(cost.bytes_of(codes, where, 64, 48) for codes, where in zip(output.codes, grain, strict=True))
    assert found.bytes_per_image == written / 5
    assert found.bits_per_pixel == pytest.approx(8 * written / (5 * 64 * 48))


def test_asked_ratio_is_met(model, images):
    assert evaluate_tokenizer(model, [images], ratio=0.25).ratios == (0.75, 0.25)
    assert evaluate_tokenizer(model, [images], num_codes=12).codes_per_image == 12


def test_perceptual_distance_is_averaged(model, images):
    found = evaluate_tokenizer(model, images.split(3), perceptual=lambda x, y: x.mean((1, 2, 3)))
    assert found.lpips == pytest.approx(images.mean().item(), abs=1e-6)


def test_a_fixed_length_tokenizer():
    model = dqcore.VQGAN.from_preset("vqgan-f16-tiny").eval()
    found = evaluate_tokenizer(model, [2 * torch.rand(1, 3, 32, 32) - 1])
    assert (found.codes_per_image, found.ratios, found.rank_correlation) == (4, (1.0,), None)
    with pytest.raises(ValueError, match="ratio: this tokenizer has one granularity"):
        evaluate_tokenizer(model, [2 * torch.rand(1, 3, 32, 32) - 1], ratio=0.5)


def test_an_image_of_one_region_has_no_rank_correlation(model):
    assert evaluate_tokenizer(model, [2 * torch.rand(1, 3, 16, 16) - 1]).rank_correlation is None


def test_no_images(model):
    with pytest.raises(ValueError, match="at least one image"):
        evaluate_tokenizer(model, [])


def test_each_batch_is_shown_as_it_was_measured(model, images):
    seen = []
    evaluate_tokenizer(model, images.split(3), each=seen.append)
    assert [len(measured.images) for measured in seen] == [3, 2]
    for measured in seen:
        encoding = measured.encoding
        with torch.no_grad():
            assert torch.equal(measured.results, round_to_8bit(model.decode(encoding.codes, encoding.grain)))
            assert torch.equal(encoding.codes, model.encode(measured.images).codes)


def test_images_of_any_size_are_padded_and_cropped(model):
    images = torch.rand(1, 3, 41, 50) * 2 - 1
    seen = []
    found = evaluate_tokenizer(model, [images], each=seen.append)
    assert seen[0].padded.shape == (1, 3, 48, 64) and seen[0].results.shape == images.shape
    assert found.psnr == psnr(images, seen[0].results).item()
    assert found.bits_per_pixel == 8 * seen[0].num_bytes[0] / (41 * 50)
