"""``pack_features`` against pooling every granularity and masking, image by image, and against a plain copy."""

import pytest
import torch

from dqcore.ops import pack_features
from dqcore.testing import assert_close, interleaved_medians

IMAGES, CHANNELS, REGIONS, FINE = 32, 256, 16, 0.5
FORMATS = {"planes": torch.contiguous_format, "vectors": torch.channels_last}


def _pool(features, grain):
    """Means of the coarse regions, then the cells of the fine ones, of each image."""
    coarse = torch.nn.functional.avg_pool2d(features, 2)
    wide = grain.repeat_interleave(2, 1).repeat_interleave(2, 2)
    parts = [
        part
        for i in range(len(grain))
        for part in (coarse[i].permute(1, 2, 0)[grain[i] == 0], features[i].permute(1, 2, 0)[wide[i] == 1])
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("memory", FORMATS)
def bench_pack_features(benchmark, device, memory):
    """(32, 256, 32, 32) float32, half of the regions fine."""
    torch.manual_seed(0)
    grain = (torch.rand(IMAGES, REGIONS, REGIONS, device=device) < FINE).long()
    features = torch.randn(IMAGES, CHANNELS, 2 * REGIONS, 2 * REGIONS, device=device)
    features = features.contiguous(memory_format=FORMATS[memory])
    packed = pack_features(features, grain)
    assert_close(packed, _pool(features, grain))
    mine, theirs, copy = interleaved_medians(
        lambda: pack_features(features, grain), lambda: _pool(features, grain), features.clone
    )
    benchmark.extra_info |= {
        "shape": list(features.shape),
        "memory": memory,
        "speedup_over_pooling": theirs / mine,
        "time_over_clone": mine / copy,
    }
    benchmark(pack_features, features, grain)
