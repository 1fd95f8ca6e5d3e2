"""A tokenizer's codes beside a twin's errors: a row of three pictures for each photo."""

import numpy as np
import torch

import dqcore
from dqcore.data.images import tensor_to_image
from dqcore.inference.compare import Comparison
from dqcore.inference.measure import evaluate_tokenizer
from dqcore.inference.rate import StreamCost
from dqcore.metrics import round_to_8bit
from dqcore.report.maps import LONGEST, codes_beside_errors
from dqcore.report.pictures import error_map, grain_overlay


def shown(model, images):
    comparison = Comparison(model, StreamCost.uniform(model.config), limit=3, keep=True)
    evaluate_tokenizer(model, [images], cost=StreamCost.uniform(model.config), each=comparison)
    return comparison.shown


def test_a_row_is_the_photo_the_twins_error_and_the_codes():
    torch.manual_seed(0)
    model = dqcore.DQVAE.from_preset("dqvae-dual-entropy-tiny", channels=8, latent_channels=16, dim=16).eval()
    twin = dqcore.VQGAN.from_preset("vqgan-f16-tiny", channels=8, latent_channels=16, dim=16).eval()
    images = torch.rand(2, 3, 40, 56) * 2 - 1  # no multiples of the stride
    images[:, :, :, :28] = 0.3
    photos = shown(model, images)
    (gallery,) = codes_beside_errors(twin, photos, ["one", "two"], model.config)
    assert [name for _, name in gallery.pictures] == ["one", "two"]
    picture = np.asarray(tensor_to_image(gallery.pictures[0][0]))
    assert picture.shape == (40, 3 * 56 + 2 * 4, 3)
    padded = torch.nn.functional.pad(images[:1], (0, 8, 0, 8), mode="replicate")
    with torch.no_grad():
        reconstruction = round_to_8bit(twin(padded).reconstruction[0, :, :40, :56])
        grain = model.encode(padded).grain[0]
    assert grain.unique().numel() == 2
    expected = [
        np.asarray(tensor_to_image(images[0])),
        np.asarray(error_map(images[0], reconstruction)),
        np.asarray(grain_overlay(padded[0], grain, 2))[:40, :56],
    ]
    for part, want in zip((picture[:, :56], picture[:, 60:116], picture[:, 120:]), expected, strict=True):
        assert np.abs(part.astype(int) - want).max() <= 1


def test_large_photos_are_shrunk_and_fixed_lengths_have_no_map():
    twin = dqcore.VQGAN.from_preset("vqgan-f16-tiny", channels=8, latent_channels=16, dim=16).eval()
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny", channels=8, latent_channels=16, dim=16).eval()
    photos = shown(model, torch.zeros(1, 3, 64, 2 * LONGEST))
    (gallery,) = codes_beside_errors(twin, photos, ["wide"], model.config)
    assert gallery.pictures[0][0].shape == (3, 32, 3 * LONGEST + 8)
    assert (
        codes_beside_errors(twin, photos, ["wide"], twin.config)
        == []
        == codes_beside_errors(twin, [], [], model.config)
    )
