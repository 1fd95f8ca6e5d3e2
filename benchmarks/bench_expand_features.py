"""``expand_features`` against ``repeat_interleave`` and ``where`` on padded maps, and against a plain copy."""

import pytest
import torch

from dqcore.ops import expand_features
from dqcore.testing import interleaved_medians

IMAGES, CHANNELS, REGIONS, FINE = 32, 256, 16, 0.5
FORMATS = {"planes": torch.contiguous_format, "vectors": torch.channels_last}


def _inputs(device, memory):
    """Both granularities' full maps, as an encoder makes them, and the packed vectors of the codes that exist."""
    torch.manual_seed(0)
    grain = (torch.rand(IMAGES, REGIONS, REGIONS, device=device) < FINE).long()
    coarse, fine = (
        torch.randn(IMAGES, CHANNELS, side, side, device=device).contiguous(memory_format=memory)
        for side in (REGIONS, 2 * REGIONS)
    )
    wide = grain.repeat_interleave(2, 1).repeat_interleave(2, 2)
    parts = [
        part
        for i in range(IMAGES)
        for part in (coarse[i].permute(1, 2, 0)[grain[i] == 0], fine[i].permute(1, 2, 0)[wide[i] == 1])
    ]
    return grain, coarse, fine, torch.cat(parts)


def _where(grain, coarse, fine):
    wide = grain.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    return torch.where(wide == 1, fine, coarse.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("memory", FORMATS)
def bench_expand_features(benchmark, device, memory):
    """(32, 256, 32, 32) float32, half of the regions fine."""
    grain, coarse, fine, packed = _inputs(device, FORMATS[memory])

    def run():
        return expand_features(packed, grain, num_granularities=2, memory_format=FORMATS[memory])

    assert torch.equal(run(), _where(grain, coarse, fine))
    mine, theirs, copy = interleaved_medians(run, lambda: _where(grain, coarse, fine), fine.clone)
    benchmark.extra_info |= {
        "shape": list(fine.shape),
        "memory": memory,
        "speedup_over_where": theirs / mine,
        "time_over_clone": mine / copy,
    }
    benchmark(run)
