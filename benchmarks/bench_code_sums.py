"""``code_sums`` against the one-hot product that EMA codebooks usually use."""

import pytest
import torch
from rows import compare

from dqcore.ops import code_sums

SHAPES = {"cpu": (8192, 1024, 256), "cuda": (20480, 1024, 256)}  # vectors, codes, channels
TINY = (50, 7, 8)


def _one_hot(x, codes, size):
    hot = torch.nn.functional.one_hot(codes, size).to(x.dtype)
    return hot.sum(0), hot.T @ x


@pytest.mark.parametrize("use", ["even", "collapsed"])
def bench_code_sums(benchmark, device, use):
    """Counts and sums of the vectors of each code; a collapsed codebook, one code taking all, costs no more."""
    num, size, dim = SHAPES[device]
    torch.manual_seed(0)
    x, codes = torch.randn(num, dim, device=device), torch.randint(0, size, (num,), device=device)
    if use == "collapsed":
        codes.fill_(size // 2)
    exact = _one_hot(x.double(), codes, size)[1]
    torch.testing.assert_close(code_sums(x, codes, size).sums.double(), exact, rtol=1e-4, atol=1e-3)
    calls = {"one_hot": lambda: _one_hot(x, codes, size)}
    compare(benchmark, device, lambda: code_sums(x, codes, size), calls, shape=[num, size, dim], use=use)
