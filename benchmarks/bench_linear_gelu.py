"""``linear_gelu`` of a sampling step's rows against PyTorch's two layers."""

import torch
from rows import compare

from dqcore.ops import linear_gelu
from dqcore.testing import assert_close

SHAPES = {"cpu": (16, 256, 1024), "cuda": (128, 1024, 4096)}  # rows, channels in and out
TINY = (3, 8, 32)


@torch.no_grad()
def bench_linear_gelu(benchmark, device):
    """One product in bfloat16 on a GPU, without a gradient."""
    rows, channels, columns = SHAPES[device]
    half = torch.bfloat16 if device == "cuda" else torch.float32
    x, weight, bias = (
        torch.randn(shape, device=device, dtype=half) for shape in ((rows, channels), (columns, channels), (columns,))
    )

    def layers():
        return torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias))

    assert_close(linear_gelu(x, weight, bias), layers())
    shape = [rows, channels, columns]
    compare(benchmark, device, lambda: linear_gelu(x, weight, bias), {"torch": layers}, shape=shape)
