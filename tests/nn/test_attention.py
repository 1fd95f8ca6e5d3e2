import pytest
import torch
import torch.nn.functional as F

import dqcore
from dqcore.nn.attention import CausalSelfAttention, cache_dtype

LENGTHS = [3, 1, 0, 7]


def layer(dropout=0.0):
    return CausalSelfAttention(24, 3, dropout).double()


def packed():
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    return torch.randn(sum(LENGTHS), 24, dtype=torch.float64), cu_seqlens


def test_matches_the_formula_of_each_sequence():
    attention, (x, cu_seqlens) = layer(), packed()
    wanted = []
    for part in x.split(LENGTHS):
        q, k, v = (y.view(-1, 3, 8).transpose(0, 1) for y in F.linear(part, *attention.qkv.parameters()).chunk(3, 1))
        scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(len(part), len(part)).triu(1).bool(), -torch.inf)
        wanted.append(attention.proj((scores.softmax(2) @ v).transpose(0, 1).flatten(1)))
    torch.testing.assert_close(attention(x, cu_seqlens), torch.cat(wanted))


def test_prefix_is_seen_by_all():
    attention, (x, cu_seqlens) = layer(), packed()
    prefix = torch.tensor([2, 0, 0, 0], dtype=torch.int32)
    changed = x.clone()
    changed[1] += 1
    seen = attention(changed, cu_seqlens, prefix_lengths=prefix) != attention(x, cu_seqlens, prefix_lengths=prefix)
    assert seen.any(1).tolist() == [True] * 3 + [False] * 8
    seen = attention(changed, cu_seqlens) != attention(x, cu_seqlens)
    assert seen.any(1).tolist() == [False, True, True] + [False] * 8


def test_steps_equal_forward():
    attention, (x, cu_seqlens) = layer(dropout=0.5).eval(), packed()
    cache, lengths = attention.empty_cache(len(LENGTHS), max(LENGTHS)), torch.zeros(len(LENGTHS), dtype=torch.int32)
    assert cache.keys.dtype == torch.float64
    rows = [[] for _ in LENGTHS]
    for step in range(max(LENGTHS)):
        active = torch.tensor([step < length for length in LENGTHS])
        new = torch.stack([part[step] if step < len(part) else torch.zeros(24).double() for part in x.split(LENGTHS)])
        with torch.no_grad():
            out = attention.step(new, cache, lengths, active=active)
        for slot in active.nonzero()[:, 0].tolist():
            rows[slot].append(out[slot])
        lengths += active
    together = torch.cat([torch.stack(some) for some in rows if some])
    torch.testing.assert_close(together, attention(x, cu_seqlens))
    assert all((rows[1, 1:] == 0).all() and (rows[2] == 0).all() for rows in cache[:2])


def test_dropout_is_for_training_and_replays():
    attention, (x, cu_seqlens) = layer(dropout=0.5), packed()
    state = torch.get_rng_state()
    first, second = attention(x, cu_seqlens), attention(x, cu_seqlens)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(attention(x, cu_seqlens), first)
    attention.eval()
    assert torch.equal(attention(x, cu_seqlens), attention(x, cu_seqlens))


def test_checkpointing_repeats_the_mask():
    attention, (x, cu_seqlens) = layer(dropout=0.5).float(), packed()
    grads = []
    for wrap in (False, True):
        torch.manual_seed(3)
        attention.zero_grad()
        run = torch.utils.checkpoint.checkpoint if wrap else lambda f, *args, use_reentrant: f(*args)
        run(attention, x.float(), cu_seqlens, use_reentrant=False).square().sum().backward()
        grads.append(attention.qkv.weight.grad.clone())
    assert torch.equal(*grads) and grads[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"num_heads": 5}, "num_heads: expected a divisor"), ({"dropout": 1.0}, "dropout: expected")],
)
def test_invalid_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CausalSelfAttention(**{"dim": 24, "num_heads": 3, **kwargs})


def test_bfloat16_under_autocast():
    attention, (x, cu_seqlens) = layer().float(), packed()
    with torch.autocast("cpu", torch.bfloat16), dqcore.backend("auto"):
        half = attention(x.float(), cu_seqlens)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), attention(x.float(), cu_seqlens), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(
    ("kind", "weights", "device", "expected"),
    [
        ("auto", torch.float32, "cpu", torch.float32),
        ("auto", torch.float32, "cuda", torch.bfloat16),
        ("auto", torch.float16, "cuda", torch.float16),
        ("auto", torch.float64, "cuda", torch.float64),
        ("bfloat16", torch.float32, "cpu", torch.bfloat16),
        ("bfloat16", torch.float64, "cpu", torch.bfloat16),
        ("bfloat16", torch.float16, "cuda", torch.float16),
        ("int8", torch.float16, "cpu", torch.int8),
    ],
)
def test_what_a_cache_is_kept_in(kind, weights, device, expected):
    assert cache_dtype(kind, weights, torch.device(device)) == expected
