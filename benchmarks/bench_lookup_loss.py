"""``lookup_loss`` against the same in PyTorch's operations."""

import torch
from rows import compare

from dqcore.ops import lookup_loss
from dqcore.ops.reference.lookup_loss import lookup_loss_reference
from dqcore.testing import assert_close

SHAPES = {"cpu": (8, 32), "cuda": (32, 32)}  # images, cells a side
TINY = (2, 4)


def bench_lookup_loss(benchmark, device):
    """One number of a map of errors."""
    images, side = SHAPES[device]
    error = torch.rand(images, side, side, device=device)
    codes = torch.randint(-1, 9, error.shape, device=device)
    given = error, codes, 256, 0.25
    for found, expected in zip(lookup_loss(*given), lookup_loss_reference(*given)[:3], strict=True):
        assert_close(found, expected)
    calls = {"torch": lambda: lookup_loss_reference(error, codes, 256, 0.25)}
    compare(benchmark, device, lambda: lookup_loss(error, codes, 256, 0.25), calls, shape=[images, side, side])
