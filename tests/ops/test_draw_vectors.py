"""Vectors drawn in one launch are those that the formula draws, from a batch as a whole and in parts."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import dqcore
from dqcore import backends
from dqcore.ops import dynamic_lookup
from dqcore.ops.draw_vectors import draw_vectors

SEED = 9_000_000_000_000_000_001


def batch(num_granularities=2, images=2, dim=5, dtype=torch.float32, device="cpu", holes=True):
    """Maps, grain map, codes with holes, errors."""
    gen = torch.Generator().manual_seed(3)
    maps = [torch.randn(images, dim, 4 << g, 4 << g, generator=gen).to(device, dtype) for g in range(num_granularities)]
    grain = torch.randint(-1 if holes else 0, num_granularities, (images, 4, 4), generator=gen).to(device)
    codebook = torch.randn(20, dim, generator=gen).to(device)
    found = dynamic_lookup(maps, grain.clamp_min(0), codebook)
    finest = 2 ** (num_granularities - 1)
    spread = grain.repeat_interleave(finest, 1).repeat_interleave(finest, 2)
    return maps, grain, torch.where(spread < 0, -1, found.codes), found.error


def seed(device="cpu"):
    return torch.tensor(SEED, device=device)


def check(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)


@pytest.mark.parametrize(
    "num_granularities,dim,dtype,number",
    [(1, 5, torch.float32, 1), (2, 5, torch.bfloat16, 7), (2, 130, torch.float32, 40), (3, 5, torch.float16, 5000)],
)
def test_kernel_equals_the_formula(route, num_granularities, dim, dtype, number):
    given = batch(num_granularities, dim=dim, dtype=dtype, device=route)
    with dqcore.backend("reference"):
        expected = draw_vectors(*given, seed(route), number)
    check(draw_vectors(*given, seed(route), number), expected)
    assert (expected[0][:-1] >= expected[0][1:]).all() and (expected[0] >= 0).any()


def test_maps_of_any_layout(route):
    maps, *rest = batch(device=route)
    expected = draw_vectors(maps, *rest, seed(route), 40)
    maps = [values.contiguous(memory_format=torch.channels_last) for values in maps]
    check(draw_vectors(maps, *rest, seed(route), 40), expected)
    maps = [values.expand(2, *values.shape)[0].transpose(2, 3).contiguous().transpose(2, 3) for values in maps]
    check(draw_vectors(maps, *rest, seed(route), 40), expected)


@pytest.mark.parametrize("number", [3, 30, 5000])
def test_parts_give_what_the_whole_gives(route, number):
    """However the cells that come before are told, and where a part has no image."""
    maps, grain, codes, error = batch(images=4, device=route)
    whole = draw_vectors(maps, grain, codes, error, seed(route), number)
    pool, before = (), 0
    for start, stop in ((0, 1), (1, 1), (1, 4)):
        part = [values[start:stop] for values in maps], grain[start:stop], codes[start:stop], error[start:stop]
        own = before // 2
        earlier = torch.tensor(before - own, device=route) if before else None
        pool = draw_vectors(*part, seed(route), number, before=own, earlier=earlier, pool=pool)
        before += part[2].numel()
    many = int((whole[0] >= 0).sum())
    assert (pool[0][many:] == -1).all() and (whole[0][many:] == -1).all()
    check([values[:many] for values in pool], [values[:many] for values in whole])
    assert not pool[1][many:].any() and not pool[2][many:].any()


def test_places_far_into_a_batch(route):
    given = batch(device=route)
    with dqcore.backend("reference"):
        expected = draw_vectors(*given, seed(route), 9, before=2**40 + 3)
    check(draw_vectors(*given, seed(route), 9, before=2**40 + 3), expected)
    more = torch.tensor(2**40, device=route)
    check(draw_vectors(*given, seed(route), 9, before=3, earlier=more), expected)


def test_vectors_that_are_not_finite_keep_their_values(route):
    """Who drew them decides what becomes of them."""
    maps, grain, codes, error = batch(1, holes=False, device=route)
    maps[0][0, 1], maps[0][1, 2] = torch.nan, torch.inf
    _, vectors, _ = draw_vectors(maps, grain, codes, error, seed(route), 32)
    assert (~vectors.isfinite()).any(1).sum() == 32


def test_equal_numbers_of_the_pool(route):
    """They are not made here, but whoever has them gets vectors all the same, and each once."""
    given = batch(1, holes=False, device=route)
    vectors = torch.arange(64.0, device=route)[:, None].expand(64, 5).contiguous()
    pool = (torch.full((64,), 2**63 - 1, device=route), vectors, vectors[:, 0].contiguous())
    _, found, distance = draw_vectors(*given, seed(route), 40, before=32, pool=pool)
    assert torch.equal(found[:, 0], distance) and len(distance.unique()) == 40 and distance.max() < 64


@pytest.mark.parametrize("cells,known", [(0, 0), (0, 3), (32, 3)])
def test_nothing_to_draw_from(route, cells, known):
    maps = [torch.randn(cells // 16, 5, 4, 4, device=route)]
    grain = torch.full((cells // 16, 4, 4), -1, device=route)
    pool = (
        torch.full((known,), -1, device=route),
        torch.zeros(known, 5, device=route),
        torch.zeros(known, device=route),
    )
    found = draw_vectors(maps, grain, grain, grain.float(), seed(route), 8, pool=pool if known else ())
    assert [len(values) for values in found] == [min(8, cells + known)] * 3
    assert (found[0] == -1).all() and not found[1].any() and not found[2].any()


@pytest.mark.skipif(not backends.interpreting(), reason="programs wait for each other, which one after another cannot")
@pytest.mark.parametrize("number", [7, 60])
def test_several_programs_decide_alike(run_together, number):
    from dqcore.kernels import draw_vectors as kernel

    given = batch(3)
    pool = draw_vectors(*given, seed(), number)
    expected = draw_vectors(*given, seed(), number, before=512, pool=pool)
    run_together(4, kernel)
    with dqcore.backend("interpreter"):
        check(draw_vectors(*given, seed(), number, before=512, pool=pool), expected)


@pytest.mark.skipif(not backends.interpreting(), reason="looks at what the interpreter is given")
def test_places_of_more_than_32_bits(monkeypatch):
    """Of 2^30 cells and more, the third list begins beyond 2^31 numbers."""
    from dqcore.kernels import draw_vectors as kernel

    seen = {}
    for name in ("number_cells", "list_largest", "rank_listed", "_write"):
        monkeypatch.setattr(kernel, name, lambda *args, name=name: seen.setdefault(name, args))
    maps, grain, codes, error = batch(1)
    longs, ints = torch.zeros(8, dtype=torch.int64), torch.zeros(kernel.BINS.value + 2, dtype=torch.int32)
    cells, known = 2**31 - 1, 5
    kernel._draw_vectors_kernel[(1,)](
        ((maps[0],), (maps[0].stride(),), grain, error), codes, (seed(), None), (longs, *error[:2]), (ints, longs),
        (longs, maps[0], error), 0, cells, known, 3, 4, 4, D=5, G=1, PROGRAMS=1, ROWS=16, BLOCK=1024, BLOCK_D=8,
    )  # fmt: skip
    keys, listed, drawn = (int(values.handle.data[0]) for values in seen["rank_listed"][:3])
    assert (listed - keys, drawn - keys) == (8 * (cells + known), 16 * (cells + known))
    assert int(seen["list_largest"][5].handle.data[0]) == cells + known


@pytest.mark.parametrize("number", [40, 5000])
def test_shapes_are_known_without_values(number):
    given = batch()
    pool = draw_vectors(*given, seed(), number)
    expected = draw_vectors(*given, seed(), number, before=128, pool=pool)
    with FakeTensorMode() as mode:
        fake = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, (*given, seed(), pool))
        found = torch.ops.dqcore.draw_vectors(*fake[:5], None, list(fake[5]), 128, number)
    for got, wanted in zip(found, expected, strict=True):
        assert (got.shape, got.dtype, got.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
