"""``codebook_update`` against the same in PyTorch's operations, as EMA codebooks usually are written."""

import pytest
import torch
from rows import compare

from dqcore import DynamicQuantizer
from dqcore.ops import codebook_update, dynamic_lookup
from dqcore.ops.reference.codebook_update import codebook_update_reference
from dqcore.testing import assert_close

SHAPES = {"cpu": (4, 64, 16, 256), "cuda": (32, 256, 16, 1024)}  # images, channels, regions a side, codes
TINY = (2, 8, 4, 20)


@pytest.mark.parametrize("use", ["no code unused", "many unused", "no restart"])
def bench_codebook_update(benchmark, device, use):
    """Averages, codes and usage; and revived codes, if any fell out of use. The sizes are put back before each call."""
    images, dim, side, size = SHAPES[device]
    torch.manual_seed(0)
    book = DynamicQuantizer(dim, size, 2).to(device).codebook
    maps = [torch.randn(images, dim, side << g, side << g, device=device) for g in range(2)]
    grain = torch.randint(0, 2, (images, side, side), device=device)
    lookup = dynamic_lookup(maps, grain, book.codes, with_sums=True)
    state = (book.weight, book.cluster_size, book.idle, book.embed_sum)
    threshold = {"no code unused": 1e-30, "many unused": 0.9, "no restart": None}[use]

    def ours():
        book.cluster_size.fill_(1)
        codebook_update(state, lookup, maps, grain, decay=0.8, threshold=threshold)

    def plain():
        book.cluster_size.fill_(1)
        given = (*lookup.statistics, maps, grain, lookup.codes, lookup.error, None)
        codebook_update_reference(*state, *given, 0.8, 1e-5, threshold)

    start, results = [value.clone() for value in state], []
    for update in (ours, plain):
        for value, first in zip(state, start, strict=True):
            value.copy_(first)
        update()
        results.append([value.clone() for value in state])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, torch.float32)
    compare(benchmark, device, ours, {"torch": plain}, shape=[images, dim, side, size], use=use)
