"""``bias_gelu`` against PyTorch's bias and GELU, whose backward pass reads the gradient again for the bias."""

import torch
from rows import compare

from dqcore.ops import bias_gelu
from dqcore.testing import assert_close

SHAPES = {"cpu": (128, 1024), "cuda": (16000, 4096)}  # tokens, channels
TINY = (9, 70)


def bench_bias_gelu(benchmark, device):
    """Forward and backward of an MLP's middle in bfloat16 on a GPU."""
    shape = SHAPES[device]
    half = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(shape, device=device, dtype=half, requires_grad=True)
    bias, grad = torch.randn(shape[1], device=device, requires_grad=True), torch.randn_like(x)

    def step(run):
        return lambda: torch.autograd.grad(run(x, bias), (x, bias), grad)

    def formula(x, bias):
        return torch.nn.functional.gelu(x + bias.to(x.dtype))

    assert_close(bias_gelu(x, bias), formula(x, bias))
    assert_close(step(bias_gelu)()[0], step(formula)()[0])
    compare(benchmark, device, step(bias_gelu), {"torch": step(formula)}, shape=list(shape))
