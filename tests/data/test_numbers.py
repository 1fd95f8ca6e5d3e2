"""Sizes, seeds and counts that are none: one error that names the argument, before anything is read or drawn."""

import re

import numpy as np
import pytest
import torch

from dqcore.data.batches import Crops, batch_loader, item_loader
from dqcore.data.crops import CenterCrop, RandomCrop, RandomCropAtMost, RandomResizedCrop
from dqcore.data.idx import export_idx
from dqcore.data.images import pad_to_stride, read_image, split_images
from dqcore.data.listing import choose, spread
from dqcore.data.made import DataWriter
from dqcore.data.preprocessing import crop_of
from dqcore.data.reading import allow_pixels
from dqcore.data.shards import ShardWriter
from dqcore.data.statistics import measure_images
from dqcore.data.steps import StepSampler
from dqcore.data.token_batches import TokenBatches
from dqcore.errors import InputError

LENGTHS = torch.tensor([5, 5, 5, 5])
CROPS = Crops([], CenterCrop(8, 8))


def tokens(budget=10, **others):
    return TokenBatches(LENGTHS, budget, **{"seed": 0, **others})


def steps(**given):
    return StepSampler(**{"num_images": 8, "batch_size": 2, "seed": 0, "start": 0, "stop": 1, **given})


FROM_1 = {
    "budget": lambda value: tokens(budget=value),
    "processes": lambda value: tokens(processes=value),
    "batch_size": lambda value: steps(batch_size=value),
    "parts": lambda value: steps(parts=value),
    "num_images": lambda value: steps(num_images=value),
    "least_side": lambda value: read_image("none.png", least_side=value),
    "stride": lambda value: pad_to_stride(torch.zeros(1, 3, 4, 4), value),
    "shard_size": lambda value: ShardWriter("unmade", {}, shard_size=value),
    "size": lambda value: RandomResizedCrop(value),
    "resize": lambda value: crop_of("center", 8, value),
    "max_pixels": lambda value: allow_pixels(value).__enter__(),
    "patch_size": lambda value: measure_images([], patch_size=value),
}
FROM_0 = {
    "rank": lambda value: steps(rank=value),
    "start": lambda value: steps(start=value),
    "keep": lambda value: Crops([], CenterCrop(8, 8), keep=value),
    "workers": lambda value: batch_loader(CROPS, [], workers=value, pin=False),
    "limit": lambda value: export_idx("none", "none", limit=value),
    "most": lambda value: choose([], value, 0),
    "at_least": lambda value: split_images([], 0.5, root="", at_least=value),
}
MORE_FROM_0 = [("workers", lambda value: item_loader(CROPS, value)), ("most", lambda value: spread([], value))]
MORE_FROM_1 = [
    ("shard_size", lambda value: DataWriter("unmade", {}, "folder", value)),
    ("size", lambda value: CenterCrop(value, 8)),
    ("size", lambda value: RandomCrop(value, 8)),
    ("resize", lambda value: RandomCropAtMost(8, value)),
]


@pytest.mark.parametrize("value", (0, -3, 2.5, "4", True, np.float32(4), torch.tensor(4)))
@pytest.mark.parametrize("name, call", [*FROM_1.items(), *MORE_FROM_1])
def test_a_number_from_1_up(name, call, value):
    with pytest.raises(InputError, match=f"^{name}: expected at least 1 and whole, got {re.escape(repr(value))}$"):
        call(value)


@pytest.mark.parametrize("value", (-1, 2.5, "4", True))
@pytest.mark.parametrize(
    "name, call", [*FROM_0.items(), ("workers", lambda v: item_loader(CROPS, v)), ("most", lambda v: spread([], v))]
)
def test_a_number_from_0_up(name, call, value):
    with pytest.raises(InputError, match=f"^{name}: expected at least 0 and whole, got {re.escape(repr(value))}$"):
        call(value)


@pytest.mark.parametrize("value", (2.0, "4", True, np.float64(1)))
@pytest.mark.parametrize("call", (tokens, steps, lambda seed: Crops([], CenterCrop(8, 8), seed=seed)))
def test_a_seed_is_any_whole_number(call, value):
    call(seed=-7)
    with pytest.raises(InputError, match=f"^seed: expected a whole number, got {re.escape(repr(value))}$"):
        call(seed=value)


def test_numbers_of_numpy_are_numbers():
    """Those of 32 bits too, whose products would wrap around."""
    many = tokens(np.int32(2**31 - 1), seed=np.int64(3), rank=np.int8(0), processes=np.uint8(1))
    assert many.steps(0) == 1
    one, other = (list(tokens(seed=seed).run(0, 4)) for seed in (3, np.int64(3)))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("call", (tokens, steps))
def test_a_rank_is_below_the_number_of_processes(call):
    with pytest.raises(InputError, match=r"^rank: expected less than processes \(2\), got 2"):
        call(rank=2, processes=2)


@pytest.mark.parametrize("lengths", (LENGTHS[:0], LENGTHS.float(), LENGTHS[None], LENGTHS - 5))
def test_lengths_of_token_batches(lengths):
    with pytest.raises(InputError, match=r"^lengths: expected \(N,\) whole numbers from 1 up, at least one, got torch"):
        TokenBatches(lengths, 10, seed=0)


@pytest.mark.parametrize("scale", ((0, 1), (0.9, 0.5), (0.5, 1.5), (0.5, float("nan")), (1.0,)))
def test_shares_of_a_crop(scale):
    with pytest.raises(InputError, match=r"^scale: expected two shares in \(0, 1\], the smaller one first, got"):
        RandomResizedCrop(8, scale=scale)


def test_a_crop_of_no_kind():
    with pytest.raises(InputError, match=r"^crop: expected one of random, random-at-most, random-resized, center, got"):
        crop_of("centre", 8)
