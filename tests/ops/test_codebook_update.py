"""The update of a codebook in one launch equals the formula, whatever the codebook and the batch."""

import contextlib
import copy

import numpy as np
import pytest
import torch

import dqcore
from dqcore import DynamicQuantizer, backends
from dqcore.codebook import EMA
from dqcore.ops import CodeSums, codebook_update, dynamic_lookup
from dqcore.ops.reference.codebook_update import Update, is_new, seed_of
from dqcore.ops.reference.draw_vectors import STEP, mix

NAMES = ("weight", "cluster_size", "idle", "embed_sum")


def plain(book, maps):
    pass


def half(book, maps):
    maps[:] = [values.bfloat16() for values in maps]


def all_equal(book, maps):
    maps[:] = [torch.ones_like(values) for values in maps]


def two_vectors(book, maps):
    maps[:] = [values[:, :1].sign().expand_as(values) for values in maps]


def not_finite(book, maps):
    maps[-1][0, :, 0], maps[0][1, 0] = torch.nan, torch.inf


def nothing_finite(book, maps):
    maps[:] = [values * torch.nan for values in maps]


def one_takes_all(book, maps):
    book.weight[1 : book.size] = 100


def all_unused(book, maps):
    book.cluster_size.fill_(0.01)


CASES = [plain, half, all_equal, two_vectors, not_finite, nothing_finite, one_takes_all, all_unused]


def problem(case, size, dim, num_granularities, device="cpu"):
    book = DynamicQuantizer(dim, size, num_granularities, learning=EMA(decay=0.8)).to(device).codebook
    book.cluster_size.uniform_(0, 4)
    book.idle.random_(0, 9)
    maps = [torch.randn(2, dim, 4 << g, 4 << g, device=device) for g in range(num_granularities)]
    case(book, maps)
    grain = torch.randint(0, num_granularities, (2, 4, 4), device=device)
    return book, maps, grain, dynamic_lookup(maps, grain, book.codes, with_sums=True)


def updated(book, lookup, maps, grain, threshold, keys=None):
    book = copy.deepcopy(book)
    state = [getattr(book, name) for name in NAMES]
    codebook_update(state, lookup, maps, grain, decay=0.8, threshold=threshold, keys=keys)
    return book


def check(book, expected, before):
    for name in NAMES:
        torch.testing.assert_close(getattr(book, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    assert torch.equal(book.weight[-1], before.weight[-1])  # the padding row


@pytest.mark.parametrize("threshold", [None, 1 / 30, 0.99])
@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_the_formula(route, case, threshold):
    before, *given = problem(case, 40, 8, 2, route)
    with dqcore.backend("reference"):
        expected = updated(before, given[2], given[0], given[1], threshold)
    check(updated(before, given[2], given[0], given[1], threshold), expected, before)


@pytest.mark.parametrize("case", [plain, nothing_finite])
def test_averages_that_stay_count_batches(route, case):
    """With a decay of 1 codes grow old, too, unless the batch has no vector."""
    book, maps, grain, lookup = problem(case, 40, 8, 2, route)
    before = copy.deepcopy(book)
    codebook_update([getattr(book, name) for name in NAMES], lookup, maps, grain, decay=1.0)
    chosen = lookup.statistics.counts > 0
    assert torch.equal(book.idle, torch.where(chosen, 0, before.idle + int(chosen.any())))
    assert all(getattr(book, name).equal(getattr(before, name)) for name in NAMES if name != "idle")


@pytest.mark.parametrize("threshold", [None, 0.99])
@pytest.mark.parametrize("case", [plain, half, not_finite, one_takes_all, all_unused])
def test_codes_that_are_no_averages(route, case, threshold):
    """Sizes and ages move, and codes that are revived."""
    before, maps, grain, lookup = problem(case, 40, 8, 2, route)
    found, expected = copy.deepcopy(before), copy.deepcopy(before)
    for book, reference in ((found, contextlib.nullcontext()), (expected, dqcore.backend("reference"))):
        with reference:
            state = (book.weight, book.cluster_size, book.idle, None)
            codebook_update(state, lookup, maps, grain, decay=0.8, threshold=threshold)
    check(found, expected, before)
    assert torch.equal(found.embed_sum, before.embed_sum)
    kept = found.cluster_size != 1
    assert torch.equal(found.codes[kept], before.codes[kept])
    assert threshold is None or (found.codes != before.codes).any() or case is half


@pytest.mark.parametrize("num_granularities", [1, 2])
@pytest.mark.parametrize("case", [plain, not_finite, one_takes_all])
def test_numbers_that_are_known_draw_alike(route, case, num_granularities):
    """Those that the op would have found, whatever the codes are; without one nothing is drawn."""
    before, maps, grain, lookup = problem(case, 40, 8, num_granularities, route)
    expected = updated(before, lookup, maps, grain, 0.99)
    key = mix(seed_of(before.cluster_size) + torch.arange(lookup.codes.numel(), device=route) * STEP) & (2**63 - 1)
    keys = key.view(lookup.codes.shape).masked_fill(lookup.codes < 0, -1)
    blind = lookup._replace(codes=torch.full_like(lookup.codes, -1))
    check(updated(before, blind, maps, grain, 0.99, keys), expected, before)
    with dqcore.backend("reference"):
        check(updated(before, blind, maps, grain, 0.99, keys), expected, before)
        none = updated(before, lookup, maps, grain, None)
    check(updated(before, lookup, maps, grain, 0.99, torch.full_like(keys, -1)), none, before)


@pytest.mark.skipif(not backends.interpreting(), reason="programs wait for each other, which one after another cannot")
@pytest.mark.parametrize("size,dim,num_granularities", [(5, 3, 1), (100, 17, 3)])
@pytest.mark.parametrize("case", CASES)
def test_several_programs_decide_alike(run_together, case, size, dim, num_granularities):
    from dqcore.kernels import codebook_update as kernel

    before, maps, grain, lookup = problem(case, size, dim, num_granularities)
    expected = updated(before, lookup, maps, grain, 0.99)
    run_together(4, kernel)
    with dqcore.backend("interpreter"):
        check(updated(before, lookup, maps, grain, 0.99), expected, before)


@pytest.mark.skipif(not backends.interpreting(), reason="one GPU stands for another")
def test_a_launch_is_sized_for_the_gpu_of_its_tensors(monkeypatch):
    from dqcore.kernels import codebook_update as kernel

    there = []

    @contextlib.contextmanager
    def on_device(tensor):
        there.append(tensor)
        yield
        there.clear()

    monkeypatch.setattr(kernel, "on_device", on_device)
    monkeypatch.setattr(kernel, "programs", lambda most: len(there))  # none elsewhere: then nothing is launched
    before, maps, grain, lookup = problem(plain, 5, 3, 1)
    with dqcore.backend("interpreter"):
        assert not torch.equal(updated(before, lookup, maps, grain, None).cluster_size, before.cluster_size)


@pytest.mark.skipif(not backends.interpreting(), reason="looks at what the interpreter does")
@pytest.mark.parametrize("dim,threshold", [(8, 0.99), (20, 0.99), (20, None)])
def test_no_warp_stores_what_another_may_still_load(monkeypatch, dim, threshold):
    """Of a block with fewer numbers than threads, warps load the same ones: between load and store they must wait."""
    from triton.runtime.interpreter import interpreter_builder as builder

    from dqcore.kernels.codebook_update import THREADS

    loaded, stores = set(), []
    load, store = builder.create_masked_load, builder.create_masked_store

    def noted_load(ptrs, mask, *rest):
        if 1 < ptrs.data.size < THREADS.value:
            loaded.update(ptrs.data[mask.data].tolist())
        return load(ptrs, mask, *rest)

    def noted_store(ptrs, value, mask, *rest):
        places = ptrs.data[mask.data].tolist()
        stores.append(len(places))
        assert loaded.isdisjoint(places)
        return store(ptrs, value, mask, *rest)

    monkeypatch.setattr(builder, "create_masked_load", noted_load)
    monkeypatch.setattr(builder, "create_masked_store", noted_store)
    monkeypatch.setattr(builder, "create_barrier", loaded.clear)
    before, maps, grain, lookup = problem(all_unused, 40, dim, 2)
    stores.clear()
    with dqcore.backend("interpreter"):
        updated(before, lookup, maps, grain, threshold)
    assert stores


@pytest.mark.skipif(not backends.interpreting(), reason="stands for a GPU that rounds up")
def test_codes_used_alike_are_as_much_used_as_their_mean(monkeypatch):
    """Quotients of a GPU may lie two floats above the true ones, and the mean of equal sizes above each of them."""
    from triton.runtime.interpreter import interpreter_builder as builder

    def rounded_up(x, y, divide=builder.create_fdiv):
        out = divide(x, y)
        out.data = np.nextafter(out.data, np.inf, dtype=out.data.dtype)
        return out

    monkeypatch.setattr(builder, "create_fdiv", rounded_up)
    before, maps, grain, lookup = problem(lambda book, maps: book.cluster_size.fill_(1), 7, 4, 1)
    lookup = lookup._replace(statistics=CodeSums(torch.ones(7), torch.randn(7, 4)))
    with dqcore.backend("interpreter"):
        after = updated(before, lookup, maps, grain, 1.0)
    assert (after.codes[:, None] != maps[0].permute(0, 2, 3, 1).flatten(0, 2)).any(2).all()  # none is revived


def test_unused_codes_are_revived_by_the_batch():
    before, maps, grain, lookup = problem(all_unused, 40, 8, 2)
    after = updated(before, lookup, maps, grain, 0.99)
    cells = {tuple(vector.tolist()) for values in maps for vector in values.permute(0, 2, 3, 1).flatten(0, 2)}
    revived = after.cluster_size == 1
    assert revived.sum() > 10
    assert all(tuple(code.tolist()) in cells for code in after.codes[revived])


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_a_vector_is_new_beyond_a_thousandth_of_how_far_they_lie_apart(scale):
    vectors = 5 + scale * torch.randn(50, 3)
    apart = (vectors - vectors.mean(0)).square().sum(1).mean()
    shares = torch.cat([torch.tensor([0.9e-3, 1.1e-3]), torch.ones(48)])
    valid = torch.arange(50) < 49
    assert is_new(valid, vectors.where(valid[:, None], 0), shares**2 * apart).tolist()[:2] == [False, True]


def test_what_a_code_in_use_has_become_revives_none(route):
    """With a decay of 0 a code becomes the mean of its vectors, here a vector, which lay apart before."""
    book = DynamicQuantizer(4, 3, learning=EMA(decay=0.0)).to(route).codebook
    x = torch.randn(1, 4, 1, 1, device=route).expand(-1, -1, 2, 2).contiguous()
    maps, grain = [x], torch.zeros(1, 2, 2, dtype=torch.int64, device=route)
    lookup = dynamic_lookup(maps, grain, book.codes, with_sums=True)
    codebook_update([getattr(book, name) for name in NAMES], lookup, maps, grain, decay=0.0, eps=1e-30, threshold=1.0)
    assert (book.codes == x[0, :, 0, 0]).all(1).tolist() == [code in lookup.codes for code in range(3)]


def test_state_of_another_shape_is_refused():
    book, maps, grain, lookup = problem(plain, 5, 3, 1)
    with pytest.raises(dqcore.errors.InputError, match="weight: expected"):
        codebook_update((book.codes, *[getattr(book, name) for name in NAMES[1:]]), lookup, maps, grain, decay=0.8)
    with pytest.raises(dqcore.errors.InputError, match="lookup: expected counts"):
        state = [getattr(book, name) for name in NAMES]
        codebook_update(state, lookup._replace(statistics=None), maps, grain, decay=0.8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay": 1.5}, r"decay: expected a number in \[0, 1\]"),
        ({"decay": float("nan")}, "decay"),
        ({"eps": -1.0}, "eps: expected a number from 0 up"),
        ({"threshold": float("inf")}, "threshold: expected a number from 0 up"),
        ({"maps": []}, "maps: expected at least one"),
        ({"state": ()}, "state: expected codes, cluster sizes, ages and vector sums, got 0 tensors"),
        ({"grain": torch.zeros(2, 2)}, "grain: expected 3 dimensions"),
        ({"keys": torch.zeros(2, 4, 4)}, r"keys: expected \(2, 4, 4\) int64, as the codes, got .* torch.float32"),
        ({"keys": torch.zeros(2, 4, 5).long()}, r"keys: expected \(2, 4, 4\) int64"),
    ],
)
def test_other_arguments_that_do_not_fit(change, message):
    book, maps, grain, lookup = problem(plain, 5, 3, 1)
    given = {"state": [getattr(book, name) for name in NAMES], "maps": maps, "grain": grain, "decay": 0.8} | change
    with pytest.raises(dqcore.errors.InputError, match=f"^{message}"):
        codebook_update(lookup=lookup, **given)


def test_arguments_by_name_have_the_order_of_the_schema():
    schema = torch.ops.dqcore.codebook_update.default._schema
    assert [argument.name for argument in schema.arguments] == list(Update._fields)
