"""What a batch teaches a codebook: as a whole, in parts, and by revived codes."""

import copy
import itertools

import pytest
import torch
from quantizer_inputs import buffers, unchanged

import dqcore
from dqcore import DynamicQuantizer, backends
from dqcore.codebook import EMA, Gradient, RandomRestart, fused
from dqcore.errors import InputError
from dqcore.estimators import Cosine, Rotation


@pytest.mark.parametrize("values", [4, 40])
def test_restart_revives_no_duplicates(values):
    torch.manual_seed(0)
    quantizer = DynamicQuantizer(4, 64, restart=RandomRestart(0.9), learning=EMA(decay=0.5))
    pool = torch.randn(values, 4)
    for _ in range(6):
        x = pool[torch.randint(values, (1, 8, 8))].permute(0, 3, 1, 2)
        quantizer(x)
        assert len(quantizer.codes.unique(dim=0)) == 64
    assert (torch.cdist(pool, quantizer.codes).min(1).values < 1e-3).sum() > values // 2


def test_parts_of_a_batch_teach_as_the_whole():
    whole = DynamicQuantizer(4, 90, learning=EMA(decay=0.8), restart=RandomRestart(0.9))
    parts = copy.deepcopy(whole)
    every = DynamicQuantizer(4, 90, learning=EMA(decay=0.8, every=3), restart=RandomRestart(0.9))
    every.load_state_dict(whole.state_dict())
    for _ in range(5):
        x = torch.randn(6, 4, 5, 5)
        whole(x)
        with parts.accumulate():
            before = parts.codes.clone()
            for part in x.split(2):
                parts(part)
            copy.deepcopy(parts)  # takes nothing away
            assert torch.equal(parts.codes, before)
        for part in x.split(2):
            every(part)
        for other in (parts, every):
            for (name, value), expected in zip(other.state_dict().items(), whole.state_dict().values(), strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=name)
    before = buffers(parts)
    with pytest.raises(ZeroDivisionError), parts.accumulate():
        parts(x)
        _ = 1 / 0
    assert unchanged(parts, before)
    parts(x)
    assert not unchanged(parts, before)
    with pytest.raises(InputError, match="every"):
        EMA(every=0)


@pytest.mark.skipif(not backends.interpreting(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("restart", [None, RandomRestart(0.9)])
def test_codes_with_gradients_are_revived_by_the_op(monkeypatch, restart):
    calls = []
    op = fused.codebook_update
    monkeypatch.setattr(fused, "codebook_update", lambda *args, **options: calls.append(1) or op(*args, **options))
    expected = DynamicQuantizer(4, 30, learning=Gradient(0.8), restart=restart)
    for _ in range(2):
        found, x = copy.deepcopy(expected), torch.randn(2, 4, 5, 5)
        for quantizer, backend in ((expected, "auto"), (found, "interpreter")):
            with dqcore.backend(backend):
                loss = quantizer(x).loss
            quantizer.zero_grad()
            loss.backward()  # codes were written to since, and the gradient is of those before
            torch.optim.SGD(quantizer.parameters(), 0.5).step()
        torch.testing.assert_close(found.codebook.weight.grad, expected.codebook.weight.grad)
        for (name, value), wanted in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6, msg=name)
    assert len(calls) == 2


@pytest.mark.skipif(not backends.interpreting(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("restart", [None, RandomRestart(0.9)])
def test_parts_are_taken_in_by_the_op(monkeypatch, restart):
    calls = []
    op = fused.codebook_update
    monkeypatch.setattr(fused, "codebook_update", lambda *args, **options: calls.append(1) or op(*args, **options))
    expected = DynamicQuantizer(4, 30, learning=EMA(decay=0.8, every=2), restart=restart)
    for _ in range(2):
        found = copy.deepcopy(expected)  # from the same bits, which decide what is drawn
        for part in torch.randn(4, 4, 5, 5).split(2):
            expected(part)
            with dqcore.backend("interpreter"):
                found(part)
        for (name, value), wanted in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6, msg=name)
    assert len(calls) == 2


def test_one_call_without_learning():
    quantizer, x = DynamicQuantizer(4, 9), torch.randn(2, 4, 3, 3)
    before = buffers(quantizer)
    quantizer(x, learn=False)
    assert unchanged(quantizer, before)
    quantizer(x)
    assert not unchanged(quantizer, before)


def test_parts_wait_for_no_other_codes():
    """What was gathered belongs to the codes that gathered it, and a copy does not gather for ever."""
    x, codes = torch.randn(2, 4, 4, 4), torch.randn(8, 4)
    quantizer = DynamicQuantizer(4, 8, learning=EMA(decay=0.8, every=2), restart=None)
    expected = copy.deepcopy(quantizer)
    for change in (
        lambda: setattr(quantizer, "codes", codes),
        lambda: quantizer.load_state_dict(expected.state_dict()),
    ):
        quantizer(torch.randn_like(x))
        expected.codes = codes
        change()
        for _ in range(2):
            quantizer(x)
            expected(x)
        assert torch.equal(quantizer.codes, expected.codes)
    with quantizer.accumulate():
        quantizer(x)
        other = copy.deepcopy(quantizer)
    for _ in range(2):
        other(x)
    assert not torch.equal(other.codes, codes) and other._gathering.open == 0


class Refusing:
    """Takes a number of tensors that are saved for the backward pass, and then no more."""

    def __init__(self, number):
        self.left = number

    def __call__(self, values):
        self.left -= 1
        if self.left < 0:
            raise OverflowError("no memory for it")
        return values


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 4}, {"estimator": Rotation()}, {"metric": Cosine()}], ids=str)
@pytest.mark.parametrize("learning", [EMA(), Gradient()], ids=str)
def test_a_pass_that_fails_has_taught_nothing(options, learning):
    """Whichever tensor cannot be saved; so the step can be tried again."""
    quantizer = DynamicQuantizer(8, 12, learning=learning, restart=RandomRestart(0.9), **options)
    maps, before = torch.randn(2, 8, 4, 4, requires_grad=True), copy.deepcopy(quantizer.state_dict())
    for number in itertools.count():
        try:
            with torch.autograd.graph.saved_tensors_hooks(Refusing(number), lambda held: held):
                quantizer(maps)
        except OverflowError:
            assert all(map(torch.equal, quantizer.state_dict().values(), before.values())), number
        else:
            break
    assert number > 0 and not all(map(torch.equal, quantizer.state_dict().values(), before.values()))
