"""``code_sums`` against the one-hot product that EMA codebooks usually use."""

import torch

from dqcore.ops import code_sums
from dqcore.testing import assert_close, interleaved_medians

NUM, SIZE, DIM = 8192, 1024, 256


def _one_hot(x, codes):
    hot = torch.nn.functional.one_hot(codes, SIZE).to(x.dtype)
    return hot.sum(0), hot.T @ x


def bench_code_sums(benchmark, device):
    """Counts and sums of the vectors of each code."""
    torch.manual_seed(0)
    x, codes = torch.randn(NUM, DIM, device=device), torch.randint(0, SIZE, (NUM,), device=device)
    assert_close(code_sums(x, codes, SIZE).sums, _one_hot(x.double(), codes)[1], torch.float32)
    mine, theirs = interleaved_medians(lambda: code_sums(x, codes, SIZE), lambda: _one_hot(x, codes))
    benchmark.extra_info |= {"shape": [NUM, SIZE, DIM], "speedup_over_one_hot": theirs / mine}
    benchmark(code_sums, x, codes, SIZE)
