"""Calls made again equal calls made anew, bit for bit: in the interpreter, by addresses as a GPU takes them."""

import ctypes
import threading
import types

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from torch.utils._python_dispatch import _disable_current_modes

import dqcore
from dqcore import DynamicQuantizer
from dqcore.codebook import fused
from dqcore.codebook.draw import Drawn
from dqcore.kernels import (
    codebook_update,
    common,
    draw_vectors,
    dynamic_lookup,
    dynamic_lookup_backward,
    lookup_loss,
    lookup_step,
    nearest_code,
    replay,
)
from dqcore.kernels import launch as module
from dqcore.kernels.launch import Known, launch
from dqcore.kernels.recording import Replay
from dqcore.kernels.replay import forget, refuse, replayed
from dqcore.ops.reference.dynamic_lookup import dynamic_lookup_reference

pytestmark = [
    pytest.mark.skipif(not common.INTERPRETED, reason="a GPU makes its calls again by itself"),
    pytest.mark.skipif(
        not module.SUPPORTED, reason="no call is made again with a Triton that makes every launch itself"
    ),
]


def at(address, like):
    """The memory at an address as a tensor that kernels take for ``like``."""
    if not isinstance(like, torch.Tensor):
        return tuple(map(at, address, like)) if isinstance(like, tuple) else address
    size = like.untyped_storage().nbytes() // like.element_size() - like.storage_offset()
    if not like.numel():
        return like
    memory = (ctypes.c_char * (size * like.element_size())).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype)


def interpreted(kernel, grid, *args, **constants):
    """A launch in the interpreter, and how to make it again with addresses in the place of tensors."""

    def run(x, y, z, stream, function, metadata, about, enter, leave, *values):
        run.times += 1
        kernel[x, y, z](*map(at, values, args), **constants)

    run.times = 0
    with _disable_current_modes():  # the interpreter computes with PyTorch, too
        kernel[grid](*args, **constants)
    if (recorder := getattr(module.noting, "recorder", None)) is not None:
        recorder.note(Known(run, None, None, (), None, None), grid, 0, args)


@pytest.fixture(autouse=True)
def replaying(monkeypatch):
    """Calls are noted as on a GPU, though kernels are interpreted."""
    driver = types.SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0)
    monkeypatch.setattr(replay, "INTERPRETED", False)
    monkeypatch.setattr(replay, "is_free", lambda: True)
    monkeypatch.setattr(replay.triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(module, "_launch", interpreted)
    forget()
    yield
    forget()


def noted():
    return [call for call in replay._calls.values() if isinstance(call, Replay)]


def problem(last=False, size=20, dim=18):
    memory = torch.channels_last if last else torch.contiguous_format
    maps = [torch.randn(1, dim, 1 << g, 2 << g).contiguous(memory_format=memory) for g in range(2)]
    return maps, torch.tensor([[[0, 1]]]), torch.randn(size + 1, dim)[:size]


def equal(found, expected):
    assert type(found) is type(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)


def last_of(function, problems):
    """What the last call gives: the third is the first that is made again."""
    again, (*before, last) = replayed(function), problems
    for given in before:
        again(*given)
    return again(*last)


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
    assert [step.known.run.times for step in call.steps] == [1] * 11


@pytest.mark.parametrize(("room", "steps"), [(4, 16), (2, 26), (1, None)])
def test_a_lookup_in_parts(monkeypatch, room, steps):
    """As of 64 images: a few parts are noted, each with a memory of its own; many would take too much of it."""
    monkeypatch.setattr(nearest_code, "rows_at_once", lambda most, prepared: room)
    problems = [(*problem(), True) for _ in range(3)]
    equal(last_of(dynamic_lookup.dynamic_lookup_fwd, problems), dynamic_lookup.dynamic_lookup_fwd(*problems[-1]))
    assert [len(call.steps) for call in noted()] == ([] if steps is None else [steps])


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
    assert [len(call.steps) for call in noted()] == [13]


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
    assert len(noted()) == 1 and len(noted()[0].steps) == 1 + (cells > 100)


@triton.jit
def _add_kernel(x, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, tl.load(out + i) + tl.load(x + i))


def add(x, to):
    launch(_add_kernel, (1,))(x, to, SIZE=2)


def by_parts(x):
    """The sum of two buffers that begin as anything, in one that is returned."""
    one, other = torch.empty(2, 2).unbind()
    out = x.new_empty(2)
    for target in (one, other, out):
        launch(_clear_kernel, (1,))(target, SIZE=2)
    add(x, one)
    add(x, other)
    add(one, out)
    add(other, out)
    return [out]


@triton.jit
def _clear_kernel(out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE), tl.zeros([SIZE], tl.float32))


def doubled(x):
    """By way of a part of zeros, seen as another dtype."""
    out, zeros = torch.empty_like(x), torch.zeros(40)
    part = zeros.view(torch.int32)[36:].view(torch.float32)[:2]
    launch(_clear_kernel, (1,))(out, SIZE=2)
    for _ in range(2):
        add(x, part)
    add(part, out)
    return (out,)


def vectors(number=3, size=2):
    return [(torch.randn(size),) for _ in range(number)]


def test_buffers_and_their_parts():
    problems = vectors()
    (out,) = last_of(by_parts, problems)
    assert torch.equal(out, 2 * problems[-1][0]) and len(noted()) == 1
    assert noted()[0].buffers == (512, 0)
    forget()
    (out,) = last_of(doubled, problems)
    assert torch.equal(out, 2 * problems[-1][0]) and len(noted()) == 1
    assert noted()[0].buffers == (0, 512)


def test_an_empty_result_beside_others():
    def with_nothing(x):
        return [*by_parts(x), x.new_zeros(0, 3)]

    problems = vectors()
    out, nothing = last_of(with_nothing, problems)
    assert torch.equal(out, 2 * problems[-1][0]) and nothing.shape == (0, 3) and len(noted()) == 1


def test_one_thread_at_a_time_takes_notes():
    noting = []

    def shared(x):
        noting.append(getattr(module.noting, "recorder", None) is not None)
        if len(noting) == 2:
            other = threading.Thread(target=again, args=(x,))
            other.start()
            other.join()
        return by_parts(x)

    again, x = replayed(shared), torch.randn(2)
    again(x)
    again(x)
    assert noting == [False, True, False] and len(noted()) == 1


def test_what_is_forgotten_while_it_is_noted_stays_forgotten():
    def forgetful(x):
        if getattr(module.noting, "recorder", None) is not None:
            forget()
        return by_parts(x)

    again, x = replayed(forgetful), torch.randn(2)
    for _ in range(2):
        again(x)
    assert not replay._calls


def test_memory_in_small_pieces_is_enough(monkeypatch):
    def scarce(*size, **options):
        if size == (512,):
            raise torch.OutOfMemoryError("one buffer for all")
        return empty(*size, **options)

    empty, problems = torch.empty, vectors()
    monkeypatch.setattr(torch, "empty", scarce)
    (out,) = last_of(by_parts, problems)
    assert torch.equal(out, 2 * problems[-1][0]) and len(noted()) == 1


def refused(function, problems):
    """The result of a third call that is not made again."""
    result = last_of(function, problems)
    assert list(replay._calls.values()) == [False]
    return result


def test_what_cannot_be_noted():
    def computes(x):
        out = torch.empty_like(x)
        launch(_clear_kernel, (1,))(out, SIZE=2)
        return [out + x]

    def returns_a_part(x):
        out = torch.empty(4)
        launch(_clear_kernel, (1,))(out, SIZE=4)
        return [out[:2]]

    def returns_zeros(x):
        return [torch.zeros(2)]

    def refuses(x):
        refuse()
        return [torch.empty(0)]

    def from_elsewhere(x):
        add(x, elsewhere)
        return []

    elsewhere, problems = torch.zeros(2), vectors()
    assert torch.equal(refused(computes, problems)[0], problems[-1][0])
    for function in (returns_a_part, returns_zeros, refuses, from_elsewhere):
        forget()
        refused(function, problems)
    assert torch.equal(elsewhere, sum(x for (x,) in problems))


def test_two_parts_of_one_memory_are_not_told_apart():
    def both(x, y):
        add(x, y)
        return []

    values = torch.ones(16)
    refused(both, [(values[:2], values[8:10])] * 3)
    assert values[8] == 4


def test_other_kinds_of_arguments_are_other_calls():
    again, kinds = replayed(by_parts), []
    base = torch.randn(9)
    for x in (base[:2], base[4:6], base[1:3], base[::2][:2], base[:4], base.double()[:2]):
        forget()
        again(x)
        kinds += [key[2:] for key in replay._calls]
    assert kinds[0] == kinds[1] and len(set(kinds)) == 5
    values = [(2,), (2.0,), (True,), ([2],), (None,)]
    for value in values:
        replayed(lambda x, value: x)(base, *value)
    assert len(replay._calls) == 1 + len(values)


def test_memory_of_calls_is_bounded(monkeypatch):
    monkeypatch.setattr(replay, "MOST", 3)
    again = replayed(by_parts)
    for size in range(2, 9):
        again(torch.zeros(size))
        assert len(replay._calls) <= 3


def test_another_device_or_a_changed_global_is_no_repetition(monkeypatch):
    again, problems = replayed(by_parts), vectors(4)
    for given in problems[:3]:
        again(*given)
    (call,) = noted()
    times = call.steps[0].known.run.times
    monkeypatch.setattr(replay.triton.runtime.driver._active, "get_current_device", lambda: 1)
    again(*problems[3])
    assert call.steps[0].known.run.times == times
    assert not call._replace(watched=[({"X": 2}, "X", 1)]).holds()
    assert call.holds()
