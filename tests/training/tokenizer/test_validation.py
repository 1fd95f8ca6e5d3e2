import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dqcore.data.batches import Batch
from dqcore.distributed import World
from dqcore.models.tokenizers.base import TokenizerOutput
from dqcore.training.tokenizer.images import find_images
from dqcore.training.tokenizer.validation import validate

WORLD = World(0, 1, torch.device("cpu"))


class _Offset(nn.Module):
    """Adds ``offset`` to images; image i of a batch has grain i % 2 everywhere and code 3."""

    def __init__(self, offset):
        super().__init__()
        self.offset, self.quantizer = offset, SimpleNamespace(num_granularities=2, codebook_size=8)

    def forward(self, images):
        assert not self.training
        grain = (torch.arange(len(images)) % 2)[:, None, None].expand(-1, 2, 2)
        codes = torch.full((len(images), 4, 4), 3)
        return TokenizerOutput(images + self.offset, torch.zeros(()), torch.zeros(()), codes, grain)


def _batches(*sizes, value=127, side=8):
    return [Batch(torch.full((size, 3, side, side), value, dtype=torch.uint8), [], []) for size in sizes]


def test_numbers():
    row = validate(_Offset(0.5), _batches(2, 3), WORLD)
    error = 64 / 127.5  # 127 + 63.75 is 191 of 8 bits
    assert row["val_psnr"] == pytest.approx(10 * math.log10(4 / error**2), abs=1e-4)
    assert row["val_reconstruction_loss"] == pytest.approx(error)
    assert row["val_ratios"] == pytest.approx([3 / 5, 2 / 5]) and row["val_fine_ratio"] == pytest.approx(2 / 5)
    assert row["val_usage"] == 1 / 8 and "val_perceptual_loss" not in row


def test_reconstructions_are_clamped():
    row = validate(_Offset(0.5), _batches(2, value=255), WORLD)
    assert row["val_reconstruction_loss"] == 0 and row["val_psnr"] == 100


def test_perceptual_distance():
    small = Batch(torch.full((1, 3, 8, 40), 255, dtype=torch.uint8), [], [])  # LPIPS has no value there
    batches, distance = _batches(1, 3, side=16), lambda images, other: (other - images).mean((1, 2, 3))
    row = validate(_Offset(0.5), [small, *batches], WORLD, distance)
    assert row["val_perceptual_loss"] == pytest.approx(64 / 127.5) == row["val_reconstruction_loss"] * 5 / 4
    assert "val_perceptual_loss" not in validate(_Offset(0.5), [small], WORLD, distance)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_image_is_seen_once_by_one_process(options, size):
    quick = options(validation_share=0.3, batch_size=2).resolved()
    seen = [
        path
        for rank in range(size)
        for batch in find_images(quick, World(rank, size, torch.device("cpu"))).validation_batches()
        for path in batch.paths
    ]
    held_out = find_images(quick, WORLD).validation.paths
    assert len(held_out) == 7 and sorted(seen) == sorted(map(str, held_out))
