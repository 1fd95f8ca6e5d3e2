"""Calls that are made anew: what cannot be noted, and what is no repetition."""

import pytest

pytest.importorskip("triton")
import torch
from noted_calls import MARKS, add, by_parts, clear_kernel, last_of, noted, vectors

from dqcore.kernels import replay
from dqcore.kernels.launch import launch
from dqcore.kernels.replay import forget, refuse, replayed

pytestmark = [*MARKS, pytest.mark.usefixtures("replaying")]


def refused(function, problems):
    """The result of a third call that is not made again."""
    result = last_of(function, problems)
    assert list(replay._calls.values()) == [False]
    return result


def test_what_cannot_be_noted():
    def computes(x):
        out = torch.empty_like(x)
        launch(clear_kernel, (1,))(out, SIZE=2)
        return [out + x]

    def returns_a_part(x):
        out = torch.empty(4)
        launch(clear_kernel, (1,))(out, SIZE=4)
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


def test_another_device_or_a_changed_global_is_no_repetition(monkeypatch):
    again, problems = replayed(by_parts), vectors(4)
    for given in problems[:3]:
        again(*given)
    (call,) = noted()
    times = call.launches[0].known.run.times
    monkeypatch.setattr(replay.triton.runtime.driver._active, "get_current_device", lambda: 1)
    again(*problems[3])
    assert call.launches[0].known.run.times == times
    assert not call._replace(watched=[({"X": 2}, "X", 1)]).holds()
    assert call.holds()
