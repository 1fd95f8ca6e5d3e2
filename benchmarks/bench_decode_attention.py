"""``decode_attention`` against PyTorch's attention on padded caches, to which an indexed write appends."""

import pytest
import torch
import torch.nn.functional as F
from rows import hold
from timing import medians, reason

from dqcore.ops import decode_attention
from dqcore.ops.reference.decode_attention import quantized

SHAPES = {"cpu": (16, 512, 8, 64), "cuda": (64, 1024, 16, 64)}  # slots, capacity, heads, channels
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
CACHED = 500


class Step:
    """One code a slot, with 500 cached in each or any number up to the capacity."""

    def __init__(self, shape, device, dtype, cached=None):
        slots, capacity, heads, dim = shape
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(1, capacity - 1, (slots,), generator=generator)
        drawn = drawn if cached is None else torch.full((slots,), cached)
        self.lengths = drawn.to(device, torch.int32)
        self.cache = torch.randn(2, slots, capacity, heads, dim, device=device, dtype=dtype)
        self.new = torch.randn(slots, 3, heads, dim, device=device, dtype=dtype).unbind(1)
        self.every = torch.arange(slots, device=device)
        self.seen = torch.arange(capacity, device=device) <= self.lengths[:, None]
        self.starts = torch.arange(slots + 1, device=device, dtype=torch.int32)
        self.rows = 2 * (int(drawn.sum()) + slots) * heads
        self.read = self.rows * dim * self.cache.element_size()

    def mine(self):
        """Ours."""
        return decode_attention(*self.new, *self.cache, self.lengths)

    def in_8_bits(self):
        """Ours from a cache of integers: the call, what its rows stand for, and the bytes that it reads."""
        integers, scales = quantized(self.cache)
        widened = (integers * scales[..., None]).to(self.cache.dtype)
        read = self.rows * (self.cache.shape[4] + scales.element_size())
        given = {"k_scales": scales[0], "v_scales": scales[1]}
        return lambda: decode_attention(*self.new, *integers, self.lengths, **given), widened, read

    def append(self):
        """As a cache of PyTorch tensors is written."""
        places = self.every, self.lengths.long()
        self.cache[0][places], self.cache[1][places] = self.new[1], self.new[2]

    def padded(self):
        """SDPA over the whole capacity, masked."""
        self.append()
        past = (x.transpose(1, 2) for x in self.cache)
        out = F.scaled_dot_product_attention(self.new[0][:, :, None], *past, attn_mask=self.seen[:, None, None])
        return out[:, :, 0]

    def flash(self):
        """FlashAttention 2 inside PyTorch: caches as packed sequences of which so many rows are used."""
        self.append()
        capacity = self.cache.shape[2]
        past = (x.flatten(0, 1) for x in self.cache)
        args = (self.starts, self.starts * capacity, 1, capacity, 0.0, False, False)
        out = torch.ops.aten._flash_attention_forward(self.new[0], *past, *args, seqused_k=self.lengths + 1)
        return out[0]


def _tolerance(dtype):
    return 1e-5 if dtype == torch.float32 else 2e-2


@pytest.mark.parametrize("cached", [CACHED, None], ids=["even", "ragged"])
def bench_decode_attention(benchmark, device, cached):
    """On a GPU the time of a copy that moves the bytes that are read is the measure."""
    cached = min(cached, SHAPES[device][1] - 1) if cached else None
    step = Step(SHAPES[device], device, DTYPE[device], cached)
    tolerance = _tolerance(DTYPE[device])
    expected = step.padded()
    torch.testing.assert_close(step.mine(), expected, rtol=tolerance, atol=tolerance)
    calls, left_out = {"dqcore": step.mine, "padded": step.padded}, {}
    if device == "cuda":
        try:
            torch.testing.assert_close(step.flash(), expected, rtol=2 * tolerance, atol=2 * tolerance)
            calls["flash_attention_2"] = step.flash
        except Exception as error:
            left_out["flash_attention_2"] = reason(error)
        source = torch.empty(step.read // 2, dtype=torch.int8, device=device)
        target = torch.empty_like(source)
        calls["copy"] = lambda: target.copy_(source)
    seconds, failed = medians(calls, device)
    ours, copy = seconds.pop("dqcore"), seconds.pop("copy", None)
    benchmark.extra_info |= {"shape": SHAPES[device], "cached": cached or "1 to capacity", "bytes_read": step.read}
    benchmark.extra_info |= {"seconds": ours, "peers": seconds, "left_out": left_out | failed}
    benchmark.extra_info |= {"speedup": {name: peer / ours for name, peer in seconds.items()}}
    if copy:
        benchmark.extra_info |= {"share_of_copy_bandwidth": copy / ours}
        if cached:
            hold(benchmark, at_least={"share_of_copy_bandwidth": 0.7})
    benchmark(step.mine)


def bench_cache_of_integers(benchmark, device):
    """500 cached, 8 bits a number: meant to take at most 0.65 of the time that keys and values of 16 bits take."""
    step = Step(SHAPES[device], device, DTYPE[device], min(CACHED, SHAPES[device][1] - 1))
    mine, widened, read = step.in_8_bits()
    out = mine()
    wide = step.mine()
    step.cache = widened
    torch.testing.assert_close(out, step.padded(), rtol=2e-2, atol=2e-2)
    seconds, _ = medians({"dqcore": mine, "wide": step.mine}, device)
    benchmark.extra_info |= {"shape": SHAPES[device], "bytes_read": read, "seconds": seconds["dqcore"]}
    benchmark.extra_info |= {"difference_to_wide": float((out - wide).abs().max())}
    benchmark.extra_info |= {"share_of_wide": seconds["dqcore"] / seconds["wide"]}
    if device == "cuda":
        hold(benchmark, at_most={"share_of_wide": 0.65})
    benchmark(mine)


@pytest.mark.parametrize("resting", [0.0, 0.75])
def bench_resting_slots(benchmark, device, resting):
    """A slot that rests costs next to nothing."""
    slots, capacity, heads, dim = SHAPES[device]
    lengths = torch.full((slots,), capacity // 2, dtype=torch.int32, device=device)
    cache = torch.randn(2, slots, capacity, heads, dim, device=device, dtype=DTYPE[device])
    q, k, v = torch.randn(3, slots, heads, dim, device=device, dtype=DTYPE[device])
    active = torch.arange(slots, device=device) >= resting * slots

    def mine():
        return decode_attention(q, k, v, *cache, lengths, active=active)

    seconds, _ = medians({"dqcore": mine}, device)
    benchmark.extra_info |= {"shape": SHAPES[device], "resting": resting, "seconds": seconds["dqcore"]}
    benchmark(mine)
