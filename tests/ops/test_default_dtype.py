"""Ops compute in the dtypes of their arguments, whatever PyTorch's default is."""

import pytest
import torch

from dqcore import ops

G = torch.Generator().manual_seed(0)
MAPS = [torch.randn(4, 8, 8 << g, 8 << g, generator=G) for g in range(2)]
GRAIN = torch.randint(0, 2, (4, 8, 8), generator=G)
CODES = torch.randn(3, 8, generator=G)  # so few that counts go beyond what bfloat16 holds
ROWS = torch.randn(12, 2, 16, generator=G)
LENGTHS = torch.tensor([0, 5, 12], dtype=torch.int32)
CACHE = torch.randn(2, 8, 2, 16, generator=G)

CALLS = {
    "dynamic_lookup": lambda: ops.dynamic_lookup(MAPS, GRAIN, CODES, with_sums=True),
    "one granularity": lambda: ops.dynamic_lookup(MAPS[1:], GRAIN.new_zeros(4, 16, 16), CODES, with_sums=True),
    "lookup_loss": lambda: ops.lookup_loss(MAPS[1][:, 0].square(), GRAIN.new_zeros(4, 16, 16), 8, 0.25),
    "nearest_code": lambda: ops.nearest_code(MAPS[1].flatten(2).mT.reshape(-1, 8), CODES),
    "code_sums": lambda: ops.code_sums(MAPS[1].flatten(2).mT.reshape(-1, 8), torch.zeros(1024, dtype=torch.long), 3),
    "patch_entropy": lambda: ops.patch_entropy(MAPS[1][:, :3].clamp(-1, 1), 8),
    "varlen_attention": lambda: ops.varlen_attention(ROWS, ROWS, ROWS, LENGTHS, LENGTHS),
    "decode_attention": lambda: ops.decode_attention(
        ROWS[:2], ROWS[:2], ROWS[:2], CACHE.clone(), CACHE.clone(), torch.tensor([3, 5], dtype=torch.int32)
    ),
}


def tensors(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [t for part in found or () for t in tensors(part)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_the_default_dtype_changes_nothing(name, dtype):
    expected = tensors(CALLS[name]())
    torch.set_default_dtype(dtype)
    try:
        found = tensors(CALLS[name]())
    finally:
        torch.set_default_dtype(torch.float32)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype is two.dtype and torch.equal(one, two)
