"""``decode_attention`` against PyTorch's attention on padded caches, which appends with an indexed write."""

import pytest
import torch
import torch.nn.functional as F

from dqcore.ops import decode_attention
from dqcore.testing import interleaved_medians

SHAPES = {"cpu": (16, 512, 8, 64), "cuda": (64, 1024, 16, 64)}  # slots, capacity, heads, channels
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}


def bench_decode_attention(benchmark, device):
    """One code a slot, slots half full on average."""
    slots, capacity, heads, dim = SHAPES[device]
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, capacity - 1, (slots,), generator=generator).to(device, torch.int32)
    keys, values = torch.randn(2, slots, capacity, heads, dim, device=device, dtype=DTYPE[device])
    q, k, v = torch.randn(3, slots, heads, dim, device=device, dtype=DTYPE[device])
    every = torch.arange(slots, device=device)
    seen = torch.arange(capacity, device=device) <= lengths[:, None]

    def mine():
        return decode_attention(q, k, v, keys, values, lengths)

    def padded():
        keys[every, lengths.long()] = k
        values[every, lengths.long()] = v
        past = (keys.transpose(1, 2), values.transpose(1, 2))
        return F.scaled_dot_product_attention(q[:, :, None], *past, attn_mask=seen[:, None, None])[:, :, 0]

    tolerance = 1e-5 if device == "cpu" else 2e-2
    torch.testing.assert_close(mine(), padded(), rtol=tolerance, atol=tolerance)
    fast, slow = interleaved_medians(mine, padded, rounds=15)
    read = 2 * (int(lengths.sum()) + slots) * heads * dim * keys.element_size()
    benchmark.extra_info |= {"shape": SHAPES[device], "speedup_over_padded": slow / fast, "bytes_read": read}
    if device == "cuda":
        source = torch.empty(2**29, dtype=torch.int8, device=device)
        target = torch.empty_like(source)
        (copy,) = interleaved_medians(lambda: target.copy_(source), rounds=15)
        benchmark.extra_info["share_of_copy_bandwidth"] = (read / fast) / (2 * source.numel() / copy)
    benchmark(mine)


@pytest.mark.parametrize("resting", [0.0, 0.75])
def bench_resting_slots(benchmark, device, resting):
    """A slot that rests costs next to nothing."""
    slots, capacity, heads, dim = SHAPES[device]
    lengths = torch.full((slots,), capacity // 2, dtype=torch.int32, device=device)
    cache = torch.randn(2, slots, capacity, heads, dim, device=device, dtype=DTYPE[device])
    q, k, v = torch.randn(3, slots, heads, dim, device=device, dtype=DTYPE[device])
    active = torch.arange(slots, device=device) >= resting * slots
    benchmark.extra_info |= {"shape": SHAPES[device], "resting": resting}
    benchmark(lambda: decode_attention(q, k, v, *cache, lengths, active=active))
