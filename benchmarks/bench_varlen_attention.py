"""``varlen_attention`` against PyTorch's attention on the same sequences: alone, padded, and FlashAttention 2."""

import pytest
import torch
import torch.nn.functional as F

from dqcore.ops import varlen_attention
from dqcore.testing import interleaved_medians

SHAPES = {  # sequences, shortest, longest, heads, channels
    "cpu": [(8, 300, 700, 8, 64)],
    "cuda": [(32, 300, 700, 16, 64), (32, 300, 700, 8, 128), (64, 256, 1024, 16, 64)],
}
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}


class Batch:
    """Random sequences of one shape, packed and padded, and what each peer makes of them."""

    def __init__(self, shape, device):
        count, shortest, longest, heads, dim = shape
        generator = torch.Generator().manual_seed(0)
        self.lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
        self.longest = max(self.lengths)
        self.cu_seqlens = torch.tensor([0, *self.lengths], device=device).cumsum(0).to(torch.int32)
        qkv = torch.randn(sum(self.lengths), 3, heads, dim, device=device, dtype=DTYPE[device])
        self.q, self.k, self.v = qkv.requires_grad_().unbind(1)
        self.padded = [
            torch.nn.utils.rnn.pad_sequence(x.detach().split(self.lengths), batch_first=True).transpose(1, 2)
            for x in (self.q, self.k, self.v)
        ]
        self.padded = [x.contiguous().requires_grad_() for x in self.padded]

    def packed(self, dropout_p=0.0):
        """Ours."""
        return varlen_attention(self.q, self.k, self.v, self.cu_seqlens, dropout_p=dropout_p)

    def each_alone(self):
        """One call of SDPA for each sequence."""
        parts = [x.split(self.lengths) for x in (self.q, self.k, self.v)]
        return [
            F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in some), is_causal=True)
            for some in zip(*parts, strict=True)
        ]

    def all_padded(self, dropout_p=0.0):
        """One call of SDPA; under a causal mask no query sees padding."""
        return F.scaled_dot_product_attention(*self.padded, dropout_p=dropout_p, is_causal=True)

    def flash(self, dropout_p=0.0):
        """FlashAttention 2 inside PyTorch, on the packed rows."""
        longest, cu = self.longest, self.cu_seqlens
        args = (self.q, self.k, self.v, cu, cu, longest, longest, dropout_p, True, False)
        return torch.ops.aten._flash_attention_forward(*args)[0]


def _with_backward(call, leaves):
    def run():
        out = call()
        out = torch.cat([x.flatten() for x in out]) if isinstance(out, list) else out
        torch.autograd.grad(out.sum(), leaves)

    return run


def _check(batch):
    with torch.no_grad():
        expected = torch.cat([x[0].transpose(0, 1) for x in batch.each_alone()])
        tolerance = 1e-5 if expected.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(batch.packed(), expected, rtol=tolerance, atol=tolerance)


def _batch(device, index):
    if index >= len(SHAPES[device]):
        pytest.skip("no such shape on this device")
    batch = Batch(SHAPES[device][index], device)
    _check(batch)
    return batch


@pytest.mark.parametrize("index", range(3))
def bench_forward(benchmark, device, index):
    """Without dropout; ``slowdown`` against one call of SDPA a sequence, ``speedup`` against one padded call."""
    batch = _batch(device, index)
    with torch.no_grad():
        mine, alone, padded = interleaved_medians(batch.packed, batch.each_alone, batch.all_padded, rounds=9)
        benchmark.extra_info |= {"shape": SHAPES[device][index], "slowdown_from_each_alone": mine / alone}
        benchmark.extra_info |= {"speedup_over_padded": padded / mine}
        if device == "cuda":
            fast, peer = interleaved_medians(batch.packed, batch.flash, rounds=50)
            benchmark.extra_info["speedup_over_flash_attention_2"] = peer / fast
        benchmark(batch.packed)


@pytest.mark.parametrize("index", range(3))
def bench_training(benchmark, device, index):
    """Forward and backward without dropout, against the same peers."""
    batch = _batch(device, index)
    packed, padded = (batch.q, batch.k, batch.v), batch.padded
    run = _with_backward(batch.packed, packed)
    peers = _with_backward(batch.each_alone, packed), _with_backward(batch.all_padded, padded)
    mine, alone, whole = interleaved_medians(run, *peers, rounds=7)
    benchmark.extra_info |= {"shape": SHAPES[device][index], "slowdown_from_each_alone": mine / alone}
    benchmark.extra_info |= {"speedup_over_padded": whole / mine}
    benchmark(run)


@pytest.mark.parametrize("index", range(3))
def bench_dropout(benchmark, device, index):
    """Forward with dropout 0.1; on a GPU against FlashAttention 2's, the fastest peer that has it."""
    batch = _batch(device, index)
    with torch.no_grad():
        benchmark.extra_info["shape"] = SHAPES[device][index]
        if device == "cuda":
            mine, peer = interleaved_medians(lambda: batch.packed(0.1), lambda: batch.flash(0.1), rounds=50)
            benchmark.extra_info["speedup_over_flash_attention_2"] = peer / mine
        benchmark(batch.packed, 0.1)
