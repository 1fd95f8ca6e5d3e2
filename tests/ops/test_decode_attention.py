import pytest
import torch

import dqcore
from dqcore.ops import decode_attention, varlen_attention
from dqcore.ops.decode_attention import append_and_attend
from dqcore.testing import assert_close

CAPACITY = 160
LENGTHS = [0, 17, 157, 64]


def inputs(new=1, heads=4, key_heads=2, dim=20, dtype=torch.float32, device="cpu"):
    """Queries, keys and values are views of one product; the cache one buffer, NaN where nothing was written."""
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(len(LENGTHS), new, heads + 2 * key_heads, dim, generator=generator).to(device, dtype)
    cache = torch.randn(2, len(LENGTHS), CAPACITY, key_heads, dim, generator=generator).to(device, dtype)
    for slot, length in enumerate(LENGTHS):
        cache[:, slot, length:] = torch.nan
    lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=device)
    return *qkv.split([heads, key_heads, key_heads], 2), *cache, lengths


def by_varlen(q, k_new, v_new, k_cache, v_cache, lengths):
    """The same from causal attention over each whole slot, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for slot, length in enumerate(lengths.tolist()):
        k, v = (
            torch.cat([cache[slot, :length], new[slot]]).cpu().double()
            for cache, new in ((k_cache, k_new), (v_cache, v_new))
        )
        cu_q, cu_k = (torch.tensor([0, len(x)], dtype=torch.int32) for x in (q[slot], k))
        out[slot] = varlen_attention(q[slot].cpu().double(), k, v, cu_q, cu_k)
    return out


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matches_varlen_attention(route, new, heads, dtype):
    given = inputs(new, *heads, dtype=dtype, device=route)
    _, k_new, v_new, k_cache, v_cache, lengths = given
    expected = by_varlen(*given)
    out = decode_attention(*given)
    assert out.dtype == dtype
    assert_close(out.cpu(), expected)
    for slot, length in enumerate(LENGTHS):
        for cache, rows in ((k_cache, k_new), (v_cache, v_new)):
            assert torch.equal(cache[slot, length : length + new], rows[slot])
            assert cache[slot, :length].isfinite().all() and cache[slot, length + new :].isnan().all()
    assert lengths.tolist() == LENGTHS


def test_steps_equal_one_pass(route):
    """Ten codes one by one, and four, four and two at a time, against packed causal attention."""
    q, k, v = torch.randn(3, 10, 2, 16, generator=torch.Generator().manual_seed(0)).to(route)
    whole = varlen_attention(q, k, v, torch.tensor([0, 10], dtype=torch.int32, device=route))
    for sizes in ([1] * 10, [4, 4, 2]):
        cache, outs, length = torch.zeros(2, 1, 12, 2, 16, device=route), [], 0
        for size in sizes:
            some = slice(length, length + size)
            lengths = torch.tensor([length], dtype=torch.int32, device=route)
            outs.append(decode_attention(q[None, some], k[None, some], v[None, some], *cache, lengths)[0])
            length += size
        assert_close(torch.cat(outs), whole)


def test_inactive_slots_rest(route):
    given = inputs(device=route)
    before = [x.clone() for x in given[3:5]]
    active = torch.tensor([True, False, True, False], device=route)
    out = decode_attention(*given, active=active)
    assert (out[~active] == 0).all()
    for cache, old in zip(given[3:5], before, strict=True):
        assert torch.equal(cache[~active].nan_to_num(), old[~active].nan_to_num())
    everyone = decode_attention(*given[:3], *before, given[5])
    assert torch.equal(out[active], everyone[active])


def test_slots_are_independent(route):
    given = inputs(device=route)
    out = decode_attention(*[x.clone() for x in given])
    order = torch.tensor([2, 0, 3, 1], device=route)
    assert torch.equal(decode_attention(*[x[order] for x in given]), out[order])


def test_single_code_without_its_dimension(route):
    given = inputs(device=route)
    out = decode_attention(*[x.clone() for x in given])
    flat = decode_attention(*[x[:, 0] for x in given[:3]], *[x.clone() for x in given[3:]])
    assert torch.equal(flat, out[:, 0])


def test_the_cache_is_not_copied():
    q, k_new, v_new, _, _, lengths = inputs(heads=2, key_heads=2)
    cache = torch.zeros(2, 4, 200_000, 2, 20)
    with torch.profiler.profile(profile_memory=True) as profile:
        decode_attention(q, k_new, v_new, *cache, lengths)
    assert sum(max(0, event.cpu_memory_usage) for event in profile.events()) < cache.nbytes / 100


@pytest.mark.parametrize("splits", [1, 2, 8])
def test_splits_change_only_rounding(monkeypatch, splits):
    kernels = pytest.importorskip("dqcore.kernels.decode_attention")
    if not dqcore.backends.interpreting():
        pytest.skip("needs Triton's interpreter")
    monkeypatch.setattr(kernels, "splits", lambda programs, capacity: splits)
    given = inputs(3)
    expected = by_varlen(*given)
    with dqcore.backend("interpreter"):
        out = decode_attention(*given)
    assert_close(out, expected)


def test_split_when_the_batch_is_small():
    kernels = pytest.importorskip("dqcore.kernels.decode_attention")
    assert kernels.splits(1024, 1024) == 1
    assert kernels.splits(32, 1024) == 8
    assert kernels.splits(1, 256) == 2
    assert kernels.splits(1, 16) == 1


def test_the_unchecked_entry_gives_the_same(route):
    given = inputs(device=route)
    caches = [x.clone() for x in given[3:5]]
    out = append_and_attend(*given[:3], *caches, given[5], None, 20**-0.5)
    assert torch.equal(out, decode_attention(*given))
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(caches, given[3:5], strict=True))


def test_opcheck():
    given = inputs()
    active = torch.tensor([True, True, False, True])
    caches = [x.nan_to_num() for x in given[3:5]]
    args = (*given[:3], *caches, given[5], active, 0.5, "ieee")
    torch.library.opcheck(torch.ops.dqcore.decode_attention.default, args)


def test_compiles():
    compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
    given = inputs()
    caches = [x.clone() for x in given[3:5]]
    out = compiled(*given[:3], *caches, given[5])
    assert torch.equal(out, decode_attention(*given))
    assert torch.equal(caches[0].nan_to_num(), given[3].nan_to_num())


BAD = {
    "q: expected 4 dimensions": {"q": torch.zeros(4, 2)},
    "k_cache: expected 4 slots, a number of heads that divides 4": {"k_cache": torch.zeros(4, 160, 3, 20)},
    "k_cache: expected float32": {"k_cache": torch.zeros(4, 160, 2, 20, dtype=torch.float64)},
    "v_cache: expected shape": {"v_cache": torch.zeros(4, 150, 2, 20)},
    "k_cache: expected a contiguous last": {"k_cache": torch.zeros(4, 160, 20, 2).mT},
    "k_new: expected shape": {"k_new": torch.zeros(4, 2, 2, 20)},
    "cache_lengths: expected int32": {"cache_lengths": torch.zeros(4, dtype=torch.int64)},
    "cache_lengths: expected 4 values": {"cache_lengths": torch.zeros(3, dtype=torch.int32)},
    "cache_lengths: expected lengths in .0, 159., room for 1 more of 160, got 160 in slot 2": {
        "cache_lengths": torch.tensor([0, 1, 160, 3], dtype=torch.int32)
    },
    "cache_lengths: expected lengths in": {"cache_lengths": torch.tensor([0, 1, -1, 3], dtype=torch.int32)},
    "active: expected bool": {"active": torch.ones(4)},
    "active: expected 4 values": {"active": torch.ones(3, dtype=torch.bool)},
    "softmax_scale: expected a positive": {"softmax_scale": -1.0},
    "precision: expected": {"precision": "fast"},
}


@pytest.mark.parametrize("message", BAD)
def test_invalid_input(message):
    names = ("q", "k_new", "v_new", "k_cache", "v_cache", "cache_lengths")
    given = dict(zip(names, inputs(), strict=True)) | BAD[message]
    with pytest.raises((TypeError, ValueError), match=message):
        decode_attention(**given)


def test_a_full_slot_may_rest():
    given = inputs()
    lengths = torch.tensor([0, 1, CAPACITY, 3], dtype=torch.int32)
    out = decode_attention(*given[:5], lengths, active=torch.tensor([True, True, False, True]))
    assert (out[2] == 0).all()


@pytest.mark.parametrize("dim", [4, 20, 64])
def test_caches_whose_heads_come_first(dim):
    """What one batched product takes on the CPU; whoever else is in the batch, or rests, changes no bit."""
    q, k_new, v_new, k_cache, v_cache, lengths = inputs(heads=4, key_heads=4, dim=dim)
    caches = torch.stack([k_cache, v_cache]).nan_to_num().transpose(2, 3).contiguous().transpose(2, 3)
    expected = by_varlen(q, k_new, v_new, *caches, lengths)
    alone = slice(0, 2)
    few = decode_attention(q[alone], k_new[alone], v_new[alone], *caches[:, alone].clone(), lengths[alone])
    active = torch.tensor([True, True, False, True])
    some = decode_attention(q, k_new, v_new, *caches.clone(), lengths, active=active)
    before = caches.clone()
    out = decode_attention(q, k_new, v_new, *caches, lengths)
    assert_close(out, expected)
    assert torch.equal(out[alone], few)
    assert torch.equal(out[active], some[active])
    assert some[2].count_nonzero() == 0
    for slot, length in enumerate(LENGTHS):
        assert torch.equal(caches[:, slot, length], torch.stack([k_new[slot, 0], v_new[slot, 0]]))
        before[:, slot, length] = caches[:, slot, length]
    assert torch.equal(before, caches)


def test_a_neighbour_with_nan_changes_no_bit():
    """On the CPU, where one product takes all slots: nor does a NaN that an earlier sample left behind a slot's end."""
    gen = torch.Generator().manual_seed(0)
    q, k_new, v_new = (torch.randn(3, 4, 16, generator=gen) for _ in range(3))
    lengths = torch.tensor([40, 7, 33], dtype=torch.int32)
    # Heads before tokens in memory: the layout of one batched product.
    caches = [torch.randn(3, 4, 96, 16, generator=gen).transpose(1, 2) for _ in range(2)]
    whole = decode_attention(q, k_new, v_new, *(x.clone() for x in caches), lengths)
    for place in (3, 60):  # seen by slot 1 or not
        spoiled = [x.clone() for x in caches]
        spoiled[0][1, place], spoiled[1][1, place] = torch.nan, torch.nan
        out = decode_attention(q, k_new, v_new, *spoiled, lengths)
        assert torch.equal(out[[0, 2]], whole[[0, 2]])
        assert out[1].isnan().all() if place == 3 else torch.equal(out[1], whole[1])
