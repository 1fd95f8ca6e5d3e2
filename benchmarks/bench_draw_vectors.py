"""``draw_vectors`` against the same in PyTorch's operations: what a part of a batch gives for unused codes."""

import pytest
import torch
from rows import compare

from dqcore.ops import dynamic_lookup
from dqcore.ops.draw_vectors import draw_vectors
from dqcore.ops.reference.draw_vectors import draw_vectors_reference

SHAPES = {"cpu": (4, 64, 16, 256), "cuda": (32, 256, 16, 1024)}  # images, channels, regions a side, vectors
TINY = (2, 8, 4, 20)


@pytest.mark.parametrize("part", ["first", "later"])
def bench_draw_vectors(benchmark, device, part):
    """As many vectors as the codebook has codes; a later part keeps the best of its own and of those before."""
    images, dim, side, number = SHAPES[device]
    torch.manual_seed(0)
    maps = [torch.randn(images, dim, side << g, side << g, device=device) for g in range(2)]
    grain = torch.randint(0, 2, (images, side, side), device=device)
    found = dynamic_lookup(maps, grain, torch.randn(number, dim, device=device))
    given, seed = (maps, grain, found.codes, found.error), torch.tensor(5, device=device)
    pool = draw_vectors(*given, seed, number) if part == "later" else ()
    before = found.codes.numel() if part == "later" else 0

    def ours():
        return draw_vectors(*given, seed, number, before=before, pool=pool)

    def plain():
        return draw_vectors_reference(*given, seed, None, list(pool), before, number)

    for one, other in zip(ours(), plain(), strict=True):
        assert torch.equal(one, other)
    compare(benchmark, device, ours, {"torch": plain}, shape=[images, dim, side, number], part=part)
