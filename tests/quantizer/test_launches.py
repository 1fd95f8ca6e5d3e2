"""How many kernels a step of the quantizer launches, counted on tensors without data."""

import pytest
import torch

from dqcore import DynamicQuantizer
from dqcore.codebook import EMA, PAPER, Gradient

pytest.importorskip("triton")
from launches import counting

MOST = 19


def launches(dtype, train=True, steps=1, granularities=2, codes=1024, last=False, images=32, dim=256, **options):
    memory = torch.channels_last if last else torch.contiguous_format
    with counting() as counter:
        quantizer = DynamicQuantizer(dim, codes, granularities, **options).train(train)
        maps = [torch.randn(images, dim, 16 << g, 16 << g, dtype=dtype) for g in range(granularities)]
        maps = [values.contiguous(memory_format=memory).requires_grad_(train) for values in maps]
        grain, grad = torch.ones(images, 16, 16, dtype=torch.int64), torch.randn_like(maps[-1])
        for _ in range(steps):
            counter.names.clear()
            out = quantizer(maps, grain)
            if train:
                torch.autograd.grad([out.map, out.loss], maps, [grad, None])
    return counter.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, PAPER], ids=["default", "paper"])
def test_a_training_step_launches_few_kernels(dtype, options):
    names = launches(dtype, **options)
    assert len(names) <= MOST, names
    assert {"_dynamic_lookup_fill_kernel", "_codebook_update_kernel", "_lookup_loss_kernel"} <= set(names)


@pytest.mark.parametrize(
    "setting",
    [
        {"dtype": torch.float16},
        {"last": True},
        {"dtype": torch.bfloat16, "last": True},
        {"granularities": 1},
        {"granularities": 3, "images": 4},
        {"codes": 16},
        {"codes": 8192},
        {"dim": 8},
        {"restart": None},
        {"nonfinite": "mask"},
        {"steps": 3},
    ],
    ids=str,
)
def test_every_setting_launches_as_few(setting):
    names = launches(**{"dtype": torch.float32} | setting)
    assert len(names) <= MOST, names


@pytest.mark.parametrize("setting", [{"dim": 512}, {"codes": 65536}, {"images": 64}], ids=str)
def test_each_part_of_a_lookup_launches_six_more(setting):
    """Whose vectors need more than one part's workspace."""
    names = launches(torch.float32, **setting)
    assert names.count("_nearest_code_scan_kernel") == 2 and len(names) <= MOST + 6, names


@pytest.mark.parametrize(
    "steps,most,options",
    [(1, 17, {"restart": None}), (2, MOST + 2, {"restart": None}), (1, MOST + 1, {}), (2, MOST + 5, {})],
)
def test_the_parts_of_a_batch_launch_few_more(steps, most, options):
    names = launches(torch.float32, steps=steps, learning=EMA(every=2), **options)
    assert len(names) <= most, names
    assert ("_codebook_update_kernel" in names) == (steps == 2)


def test_codes_with_gradients_launch_little_more():
    """Their loss, and what it needs backwards."""
    names = launches(torch.float32, learning=Gradient())
    assert len(names) <= 36, names


def test_projections_launch_little_more():
    """Three products and what they need backwards; two more passes over each map leave out what is not finite."""
    names = launches(torch.float32, codebook_dim=16)
    assert len(names) <= 42, names


def test_evaluation_launches_the_lookup_alone():
    names = launches(torch.float32, train=False)
    assert len(names) <= 11, names


def test_every_launch_is_seen():
    with counting() as counter:
        x = torch.randn(4, 6)
        counter.names.clear()
        (x + 1).T[:2].relu_()
        x.sort()
    assert counter.names[:2] == ["add", "relu_"] and counter.names.count("sort") == 12
