"""``unpack_codes`` against a Python loop over codes, which is how a sequence is usually written back."""

import time

import torch
from timing import interleaved_medians

from dqcore.ops import pack_codes, unpack_codes

IMAGES, REGIONS, FINE = 32, 16, 0.5


def _sequence(device):
    torch.manual_seed(0)
    grain = (torch.rand(IMAGES, REGIONS, REGIONS, device=device) < FINE).long()
    return pack_codes(torch.randint(0, 1024, (IMAGES, 2 * REGIONS, 2 * REGIONS), device=device), grain)


def _loop(seq):
    """One code after the other, image by image."""
    code_map = seq.codes.new_zeros(len(seq), 2 * REGIONS, 2 * REGIONS)
    for index, image in enumerate(seq):
        for code, position, grain in zip(image.codes, image.positions, image.grains, strict=True):
            if grain == 0:
                y, x = 2 * (position // REGIONS), 2 * (position % REGIONS)
                code_map[index, y : y + 2, x : x + 2] = code
            else:
                code_map[index, position // (2 * REGIONS), position % (2 * REGIONS)] = code
    return code_map


def bench_unpack_codes(benchmark, device):
    """Dual granularity, 16x16 regions, half of them fine."""
    seq = _sequence(device)
    start = time.perf_counter()
    expected = _loop(seq)
    loop = time.perf_counter() - start
    assert torch.equal(unpack_codes(seq)[0], expected)
    (mine,) = interleaved_medians(lambda: unpack_codes(seq))
    benchmark.extra_info |= {"images": IMAGES, "codes": len(seq.codes), "speedup_over_python_loop": loop / mine}
    benchmark(unpack_codes, seq)
