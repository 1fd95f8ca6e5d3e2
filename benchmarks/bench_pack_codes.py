"""``pack_codes`` against a loop over images with boolean masks, as the paper's released code has it."""

import torch
from timing import interleaved_medians

from dqcore.ops import pack_codes

IMAGES, REGIONS, FINE = 32, 16, 0.5


def _masks(codes, grain):
    """Codes of a dual batch, in sequence order."""
    parts = []
    for image, regions in zip(codes, grain, strict=True):
        fine = regions.repeat_interleave(2, 0).repeat_interleave(2, 1) == 1
        parts += [image[::2, ::2][regions == 0], image[fine]]
    return torch.cat(parts)


def bench_pack_codes(benchmark, device):
    """Dual granularity, 16x16 regions, half of them fine."""
    torch.manual_seed(0)
    grain = (torch.rand(IMAGES, REGIONS, REGIONS, device=device) < FINE).long()
    codes = torch.randint(0, 1024, (IMAGES, 2 * REGIONS, 2 * REGIONS), device=device)
    assert torch.equal(pack_codes(codes, grain).codes, _masks(codes, grain))
    mine, theirs = interleaved_medians(lambda: pack_codes(codes, grain), lambda: _masks(codes, grain))
    benchmark.extra_info |= {"images": IMAGES, "regions": [REGIONS, REGIONS], "speedup_over_masks": theirs / mine}
    benchmark(pack_codes, codes, grain)
