"""The quantizer's launchers made again equal those made anew, bit for bit."""

import pytest

pytest.importorskip("triton")
import torch
from noted_calls import MARKS, last_of, noted

import dqcore
from dqcore import DynamicQuantizer
from dqcore.codebook import fused
from dqcore.codebook.draw import Drawn
from dqcore.kernels import (
    codebook_update,
    draw_vectors,
    dynamic_lookup,
    dynamic_lookup_backward,
    lookup_loss,
    lookup_step,
    nearest_code,
    replay,
)
from dqcore.ops.reference.dynamic_lookup import dynamic_lookup_reference

pytestmark = [*MARKS, pytest.mark.usefixtures("replaying")]


def problem(last=False, size=20, dim=18):
    memory = torch.channels_last if last else torch.contiguous_format
    maps = [torch.randn(1, dim, 1 << g, 2 << g).contiguous(memory_format=memory) for g in range(2)]
    return maps, torch.tensor([[[0, 1]]]), torch.randn(size + 1, dim)[:size]


def equal(found, expected):
    assert type(found) is type(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)


@pytest.mark.parametrize("last", [False, True])
def test_lookup(monkeypatch, last):
    class Seen(dict):
        def get(self, key, default):
            return super().get(key)  # as if there had been a first call, which takes the interpreter a second

        def __contains__(self, key):
            return True

    monkeypatch.setattr(replay, "_calls", Seen())
    problems = [(*problem(last), True) for _ in range(2)]
    equal(last_of(dynamic_lookup.dynamic_lookup_fwd, problems), dynamic_lookup.dynamic_lookup_fwd(*problems[-1]))
    (call,) = noted()
    assert [step.known.run.times for step in call.launches] == [1] * 9


@pytest.mark.parametrize(("room", "steps"), [(4, 14), (2, 24), (1, None)])
def test_a_lookup_in_parts(monkeypatch, room, steps):
    """As of 64 images: a few parts are noted, each with a memory of its own; many would take too much of it."""
    monkeypatch.setattr(nearest_code, "rows_at_once", lambda most, prepared: room)
    problems = [(*problem(), True) for _ in range(3)]
    equal(last_of(dynamic_lookup.dynamic_lookup_fwd, problems), dynamic_lookup.dynamic_lookup_fwd(*problems[-1]))
    assert [len(call.launches) for call in noted()] == ([] if steps is None else [steps])


@pytest.mark.parametrize("last", [False, True])
def test_gradient_of_a_lookup(last):
    function, problems = dynamic_lookup_backward.dynamic_lookup_bwd, []
    for _ in range(3):
        maps, grain, codebook = problem(last)
        codes, quantized, *_ = dynamic_lookup_reference(maps, grain, codebook, False)
        problems.append((maps, grain, codes, quantized, torch.randn_like(maps[-1]), torch.randn(1, 2, 4)))
    equal(last_of(function, problems), function(*problems[-1]))
    assert len(noted()) == 1


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_update_of_a_codebook(threshold):
    function, problems = codebook_update.codebook_update_fwd, []
    for _ in range(3):
        maps, grain, codebook = problem()
        codes, _, error, *statistics = dynamic_lookup_reference(maps, grain, codebook, True)
        state = (torch.randn(21, 18), torch.rand(20), torch.randint(0, 5, (20,)), torch.randn(20, 18))
        problems.append((state, tuple(statistics), maps, grain, codes, error, (0.8, 1e-5, threshold)))
    state, *rest = problems.pop()
    other = tuple(values.clone() for values in state)
    function(state, *rest)
    assert last_of(function, [*problems, (other, *rest)]) is None
    assert all(map(torch.equal, state, other)) and len(noted()) == 1


def test_a_training_step():
    """Lookup, loss and update are noted as one call."""
    function, problems = lookup_step.lookup_step_fwd, []
    for _ in range(3):
        maps, grain, _ = problem()
        state = (torch.randn(21, 18), torch.rand(20), torch.randint(0, 5, (20,)), torch.randn(20, 18))
        problems.append((maps, grain, state, 0.25, (0.8, 1e-5, 0.9)))
    maps, grain, state, *rest = problems.pop()
    other = tuple(values.clone() for values in state)
    expected = function(maps, grain, other, *rest)
    equal(last_of(function, [*problems, (maps, grain, state, *rest)]), expected)
    assert all(map(torch.equal, state, other))
    assert [len(call.launches) for call in noted()] == [11]


def test_vectors_drawn_from_a_part():
    function, problems = draw_vectors.draw_vectors_fwd, []
    for _ in range(3):
        maps, grain, codebook = problem()
        codes, _, error, *_ = dynamic_lookup_reference(maps, grain, codebook, False)
        pool = [torch.randint(0, 2**62, (4,)), torch.randn(4, 18), torch.rand(4)]
        problems.append((maps, grain, codes, error, torch.tensor(5), None, pool, 8, 6))
    equal(last_of(function, problems), function(*problems[-1]))
    assert len(noted()) == 1


def test_vectors_that_were_drawn_are_noted_once(monkeypatch):
    """One tensor is codes, granularities and random numbers to the op; a launch must not get it thrice."""
    seen = []
    monkeypatch.setattr(codebook_update, "codebook_update_fwd", lambda *args: seen.extend(args))
    drawn = Drawn(torch.arange(4), torch.randn(4, 18), torch.rand(4))
    layer = DynamicQuantizer(18, 20)
    with dqcore.backend("interpreter"):
        fused.update_by(layer.codebook, layer.restart, (torch.ones(20), torch.ones(20, 18)), drawn)
    tensors = [value for value in torch.utils._pytree.tree_leaves(seen) if isinstance(value, torch.Tensor)]
    assert len({value.untyped_storage()._cdata for value in tensors}) == len(tensors) == 9


@pytest.mark.parametrize("cells", [60, 300])
def test_loss(monkeypatch, cells):
    monkeypatch.setattr(lookup_loss, "ALONE", 100)
    monkeypatch.setattr(lookup_loss, "PARTS", 4)
    problems = [(torch.rand(1, 1, cells), torch.randint(-1, 5, (1, 1, cells)), 8, 0.25) for _ in range(3)]
    equal(last_of(lookup_loss.lookup_loss_fwd, problems), lookup_loss.lookup_loss_fwd(*problems[-1]))
    assert len(noted()) == 1 and len(noted()[0].launches) == 1 + (cells > 100)
