"""``dynamic_lookup`` against repeat + ``addmm`` + ``argmin`` + gather + loss, at the paper's size."""

import torch

from dqcore.ops import dynamic_lookup
from dqcore.ops.dynamic_lookup import cells_per_code, merge_maps
from dqcore.testing import assert_nearest, interleaved_medians

DIM, SIZE = 256, 1024


@torch.no_grad()
def _replicated(maps, grain, codebook):
    """What the method's released code does: every cell of the finest grid is looked up."""
    merged = merge_maps(maps, grain)
    flat = merged.permute(0, 2, 3, 1).reshape(-1, DIM)
    square = flat.square().sum(1, keepdim=True) + codebook.square().sum(1)
    codes = torch.addmm(square, flat, codebook.T, alpha=-2).argmin(1)
    quantized = codebook[codes].view(merged.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2).contiguous()
    error = (quantized - merged).square() / cells_per_code(grain, len(maps))[:, None]
    return quantized, error.mean(), codes


def bench_dynamic_lookup(benchmark, device):
    """32 images on a GPU (8 on a CPU), two granularities, half of the regions fine; at least 5x on a GPU."""
    torch.manual_seed(0)
    batch = 32 if device == "cuda" else 8
    maps = [torch.randn(batch, DIM, 16 << g, 16 << g, device=device) for g in range(2)]
    grain = torch.rand(batch, 256, device=device).argsort(1).lt(128).long().view(batch, 16, 16)
    codebook = torch.randn(SIZE, DIM, device=device)
    codes = dynamic_lookup(maps, grain, codebook).codes
    merged = merge_maps(maps, grain).permute(0, 2, 3, 1).reshape(-1, DIM)
    assert_nearest(codes.flatten()[:256], merged[:256], codebook)
    mine, theirs = interleaved_medians(
        lambda: dynamic_lookup(maps, grain, codebook), lambda: _replicated(maps, grain, codebook)
    )
    benchmark.extra_info |= {"images": batch, "codes": int((4**grain).sum()), "speedup_over_replicated": theirs / mine}
    benchmark(dynamic_lookup, maps, grain, codebook)
