"""``pack_features`` against pooling every granularity and masking, image by image, and against a plain copy."""

import pytest
import torch
from rows import compare

from dqcore.ops import pack_features
from dqcore.testing import assert_close

SHAPES = {"cpu": (32, 256, 16), "cuda": (32, 256, 16)}  # images, channels, regions a side
TINY = (2, 8, 2)
FINE = 0.5
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
    images, channels, side = SHAPES[device]
    torch.manual_seed(0)
    grain = (torch.rand(images, side, side, device=device) < FINE).long()
    features = torch.randn(images, channels, 2 * side, 2 * side, device=device)
    features = features.contiguous(memory_format=FORMATS[memory])
    packed = pack_features(features, grain)
    assert_close(packed, _pool(features, grain))
    pooling = {"pooling": lambda: _pool(features, grain)}  # the host waits for the sizes of its masks
    total = len(packed)  # with it the host need not wait, and a graph can hold the call

    def run():
        return pack_features(features, grain, total=total)

    calls = {"clone": features.clone}
    compare(benchmark, device, run, calls, waits=pooling, shape=list(features.shape), memory=memory)
