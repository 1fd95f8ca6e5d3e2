"""``dynamic_lookup`` against repeat + ``addmm`` + ``argmin`` + gather + loss, at the paper's size."""

import pytest
import torch
from rows import compare, tf32

from dqcore.ops import dynamic_lookup
from dqcore.ops.layout import cells_per_code, merge_maps
from dqcore.testing import assert_nearest

SHAPES = {"cpu": (8, 256, 1024, 16), "cuda": (32, 256, 1024, 16)}  # images, channels, codes, regions a side
TINY = (2, 8, 20, 2)
TARGET = {"seconds": 95e-6, "speedup": {"replicated": 6}}


@torch.no_grad()
def _replicated(maps, grain, codebook):
    """What the method's released code does: every cell of the finest grid is looked up."""
    merged = merge_maps(maps, grain)
    flat = merged.permute(0, 2, 3, 1).reshape(-1, merged.shape[1])
    square = flat.square().sum(1, keepdim=True) + codebook.square().sum(1)
    codes = torch.addmm(square, flat, codebook.T, alpha=-2).argmin(1)
    quantized = codebook[codes].view(merged.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2).contiguous()
    error = (quantized - merged).square() / cells_per_code(grain, len(maps))[:, None]
    return quantized, error.mean(), codes


def _replicated_tf32(*args):
    with tf32(True):
        return _replicated(*args)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@DTYPES
def bench_dynamic_lookup(benchmark, device, dtype):
    """Two granularities, half of the regions fine; maps in float32 or, under autocast, bfloat16."""
    _measure(benchmark, device, dtype, torch.contiguous_format)


@DTYPES
def bench_channels_last(benchmark, device, dtype):
    """The same of maps whose channels are innermost, as convolutions on a GPU like them."""
    _measure(benchmark, device, dtype, torch.channels_last)


def _measure(benchmark, device, dtype, memory):
    images, dim, size, side = SHAPES[device]
    torch.manual_seed(0)
    maps = [torch.randn(images, dim, side << g, side << g, device=device).to(dtype) for g in range(2)]
    maps = [values.contiguous(memory_format=memory) for values in maps]
    grain = torch.rand(images, side**2, device=device).argsort(1).lt(side**2 // 2).long().view(images, side, side)
    codebook = torch.randn(size, dim, device=device)
    codes = dynamic_lookup(maps, grain, codebook).codes
    merged = merge_maps(maps, grain).permute(0, 2, 3, 1).reshape(-1, dim)
    assert_nearest(codes.flatten()[:256], merged[:256], codebook)
    wide = [values.float() for values in maps]
    calls = {
        "replicated": lambda: _replicated(wide, grain, codebook),
        "replicated_tf32": lambda: _replicated_tf32(wide, grain, codebook),
    }
    target = TARGET if dtype == torch.float32 else None
    compare(benchmark, device, lambda: dynamic_lookup(maps, grain, codebook), calls, target,
            images=images, codes=int((4**grain).sum()), dtype=str(dtype))  # fmt: skip
