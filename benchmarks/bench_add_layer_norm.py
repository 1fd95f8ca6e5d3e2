"""``add_layer_norm`` against PyTorch's dropout, sum and normalization under autocast; forward and backward."""

import torch
from rows import compare
from torch.nn import functional as F

from dqcore.ops import add_layer_norm
from dqcore.testing import assert_close

SHAPES = {"cpu": (256, 256), "cuda": (16000, 1024)}  # tokens, channels
DROPOUT = 0.1
TINY = (9, 70)


def bench_add_layer_norm(benchmark, device):
    """Residuals in float32, branch and normalized sum in bfloat16, as in training under autocast."""
    shape = SHAPES[device]
    half = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(shape, device=device, requires_grad=True)
    branch = torch.randn(shape, device=device, dtype=half, requires_grad=True)
    weight, bias = (torch.randn(shape[1], device=device, requires_grad=True) for _ in range(2))
    grads = torch.randn(shape, device=device), torch.randn(shape, device=device, dtype=half)

    def ours(dropout=DROPOUT):
        with torch.autocast(device, half, enabled=half != torch.float32):
            return add_layer_norm(x, branch, weight, bias, dropout_p=dropout)

    def formula(dropout=DROPOUT):
        total = x + F.dropout(branch, dropout)
        return total, F.layer_norm(total, weight.shape, weight, bias).to(half)

    def step(pair):
        return lambda: torch.autograd.grad(pair(), (x, branch, weight, bias), grads)

    for found, expected in zip(ours(0.0), formula(0.0), strict=True):  # what is dropped is random
        assert_close(found, expected)
    compare(benchmark, device, step(ours), {"torch": step(formula)}, shape=list(shape))
