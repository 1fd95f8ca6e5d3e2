"""Ops compute in the dtypes of their arguments, whatever PyTorch's default is."""

import copy
import functools

import pytest
import torch

import dqcore
from dqcore import ops

G = torch.Generator().manual_seed(0)
MAPS = [torch.randn(4, 8, 8 << g, 8 << g, generator=G) for g in range(2)]
GRAIN = torch.randint(0, 2, (4, 8, 8), generator=G)
CODES = torch.randn(3, 8, generator=G)  # so few that counts go beyond what bfloat16 holds
ROWS = torch.randn(12, 2, 16, generator=G)
LENGTHS = torch.tensor([0, 5, 12], dtype=torch.int32)
CACHE = torch.randn(2, 8, 2, 16, generator=G)
LAYER = dqcore.DynamicQuantizer(8, 64, 2)  # some of its codes are revived


def training_step(maps, grain):
    """All that a step of a quantizer gives and changes."""
    layer = copy.deepcopy(LAYER).to(grain.device)
    out = layer(maps, grain)
    return out.map, out.loss, *layer.parameters(), *layer.buffers()


lookup = functools.partial(ops.dynamic_lookup, with_sums=True)
CALLS = {
    "training_step": (training_step, MAPS, GRAIN),
    "dynamic_lookup": (lookup, MAPS, GRAIN, CODES),
    "one granularity": (lookup, MAPS[1:], GRAIN.new_zeros(4, 16, 16), CODES),
    "lookup_loss": (ops.lookup_loss, MAPS[1][:, 0].square(), GRAIN.new_zeros(4, 16, 16), 8, 0.25),
    "nearest_code": (ops.nearest_code, MAPS[1].flatten(2).mT.reshape(-1, 8), CODES),
    "code_sums": (ops.code_sums, MAPS[1].flatten(2).mT.reshape(-1, 8), torch.zeros(1024, dtype=torch.long), 3),
    "patch_entropy": (ops.patch_entropy, MAPS[1][:, :3].clamp(-1, 1), 8),
    "varlen_attention": (ops.varlen_attention, ROWS, ROWS, ROWS, LENGTHS),
    "decode_attention": (ops.decode_attention, *[ROWS[:2]] * 3, CACHE, CACHE.clone(), LENGTHS[1:] - 5),
}


def moved(value, device):
    """A copy of tensors, also in lists."""
    if isinstance(value, list):
        return [moved(part, device) for part in value]
    return value.to(device, copy=True) if isinstance(value, torch.Tensor) else value


def tensors(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [t for part in found or () for t in tensors(part)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_the_default_dtype_changes_nothing(route, name, dtype):
    call, *args = CALLS[name]
    expected = tensors(call(*(moved(value, route) for value in args)))
    torch.set_default_dtype(dtype)
    try:
        found = tensors(call(*(moved(value, route) for value in args)))
    finally:
        torch.set_default_dtype(torch.float32)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype is two.dtype and torch.equal(one, two)
