"""Caches that are narrower than the queries: bfloat16, and 8-bit integers with a scale a row."""

import pytest
import torch
from test_decode_attention import LENGTHS, by_varlen, inputs

from dqcore.ops import decode_attention
from dqcore.testing import assert_close

KEPT = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.int8),
    (torch.bfloat16, torch.int8),
    (torch.float16, torch.int8),
]


def narrow(q, k_new, v_new, k_cache, v_cache, lengths, kept):
    """The same inputs with caches of another dtype, and their scales; garbage where nothing was written."""
    if kept != torch.int8:
        return (q, k_new, v_new, k_cache.to(kept), v_cache.to(kept), lengths), {}
    caches, scales = zip(*map(integers, (k_cache, v_cache)), strict=True)
    return (q, k_new, v_new, *caches, lengths), {"k_scales": scales[0], "v_scales": scales[1]}


def integers(rows):
    """By the formula: NaN rows, which nothing was written to, get NaN scales."""
    largest = rows.float().abs().amax(-1)
    full = torch.full_like(largest, 127)
    steps = (rows.float() * (full / largest)[..., None]).round().nan_to_num()
    return steps.to(torch.int8), largest * (1 / 127)


def widened(cache, scales):
    return cache.double() if scales is None else cache.double() * scales.double()[..., None]


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize(("dtype", "kept"), KEPT, ids=str)
def test_attends_to_what_it_keeps(route, new, dtype, kept):
    """New rows are rounded to the formula's bits, old ones stay, and the output is that of the rounded rows."""
    given, scales = narrow(*inputs(new, 4, 4 if new == 1 else 2, dtype=dtype, device=route), kept)
    q, k_new, v_new, *caches, lengths = given
    before = [x.clone() for x in (*caches, *scales.values())]
    out = decode_attention(*given, **scales)
    assert out.dtype == dtype
    places = torch.arange(new, device=route) + lengths[:, None]
    rounded, pasts = [], []
    for name, rows, cache, old in zip(scales or (None, None), (k_new, v_new), caches, before, strict=False):
        slots = torch.arange(len(LENGTHS), device=route)[:, None]
        there, there_scales = cache[slots, places], scales[name][slots, places] if scales else None
        if scales:
            expected, row_scales = integers(rows)
            steps = (there.int() - expected.int()).abs()  # a GPU's quotient is rounded otherwise
            assert torch.equal(there_scales, row_scales) and int(steps.max()) <= (route == "cuda")
        else:
            assert_close(there, rows.to(kept), kept)  # the interpreter cuts off instead of rounding
        for slot, length in enumerate(LENGTHS):
            assert torch.equal(cache[slot, :length], old[slot, :length])
        rounded.append(widened(there, there_scales))
        pasts.append(widened(cache, scales.get(name)))
    assert_close(out.cpu(), by_varlen(q, *rounded, *pasts, lengths))


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.int8], ids=str)
def test_tokens_together_and_one_by_one(route, kept):
    """A new token sees itself as later ones see it, so that caches are the same and outputs too."""
    q, k, v = torch.randn(3, 6, 2, 16, generator=torch.Generator().manual_seed(0)).to(route)
    found = []
    for size in (1, 3):
        cache, outs = torch.zeros(2, 1, 40, 2, 16, dtype=kept, device=route), []
        names = ("k_scales", "v_scales") if kept == torch.int8 else ()
        scales = {name: torch.zeros(1, 40, 2, device=route) for name in names}
        for first in range(0, 6, size):
            some = slice(first, first + size)
            lengths = torch.tensor([first], dtype=torch.int32, device=route)
            outs.append(decode_attention(q[None, some], k[None, some], v[None, some], *cache, lengths, **scales)[0])
        found.append((torch.cat(outs), cache, *scales.values()))
    assert_close(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))


def test_rows_that_integers_cannot_hold(route):
    """NaN and infinity come out as NaN, and harm no other slot; a row of zeros or of tiny numbers is zeros."""
    rows = torch.randn(5, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    rows[0, 0, 0, 3], rows[1, 0, 0, 3], rows[2], rows[3] = torch.nan, torch.inf, 0.0, 1e-40
    rows = rows.to(route)
    caches, scales = torch.zeros(2, 5, 40, 1, 8, dtype=torch.int8, device=route), torch.zeros(2, 5, 40, 1, device=route)
    lengths = torch.zeros(5, dtype=torch.int32, device=route)
    out = decode_attention(rows.nan_to_num(1, 1), rows, rows, *caches, lengths, k_scales=scales[0], v_scales=scales[1])
    assert out[:2].isnan().all() and (out[2:4] == 0).all() and (scales[:, 2:4, 0] == 0).all()
    assert (out[4] - rows[4]).abs().max() <= rows[4].abs().max() / 254 * 1.0001
    assert not scales[:, :2, 0].isfinite().any()


def test_opcheck_and_compile():
    given, scales = narrow(*inputs(heads=2), torch.int8)
    scales = {name: x.nan_to_num() for name, x in scales.items()}
    args = [*(x.clone() for x in given), None, 0.5, "ieee", *(x.clone() for x in scales.values())]
    torch.library.opcheck(
        torch.ops.dqcore.decode_attention.default, args, test_utils=("test_schema", "test_faketensor")
    )
    eager = decode_attention(*(x.clone() for x in given), **{name: x.clone() for name, x in scales.items()})
    compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given, **scales), eager)
    assert scales["k_scales"][0, 0].all()


BAD = {
    "k_scales: expected scales for int8 caches and only for them, got None": {"k_scales": None},
    "v_scales: expected float32": {"v_scales": torch.zeros(4, 160, 2, dtype=torch.float64)},
    "k_scales: expected shape .4, 160, 2.": {"k_scales": torch.zeros(4, 160, 3)},
    "v_cache: expected int8": {"v_cache": torch.zeros(4, 160, 2, 20)},
    "k_scales: expected scales for int8 caches and only for them, got scales": {
        "k_cache": torch.zeros(4, 160, 2, 20),
        "v_cache": torch.zeros(4, 160, 2, 20),
    },
    "k_cache: expected float32, int8, bfloat16, got float16": {"k_cache": torch.zeros(4, 160, 2, 20).half()},
}


@pytest.mark.parametrize("message", BAD)
def test_invalid_input(message):
    names = ("q", "k_new", "v_new", "k_cache", "v_cache", "cache_lengths")
    given, scales = narrow(*inputs(), torch.int8)
    with pytest.raises((TypeError, ValueError), match=message):
        decode_attention(**dict(zip(names, given, strict=True)) | scales | BAD[message])
