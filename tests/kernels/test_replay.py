"""Calls made again: buffers, threads, memory, and which calls are kept."""

import threading

import pytest

pytest.importorskip("triton")
import torch
from noted_calls import MARKS, add, by_parts, clear_kernel, last_of, noted, vectors

from dqcore.kernels import launch as module
from dqcore.kernels import replay
from dqcore.kernels.launch import launch
from dqcore.kernels.replay import forget, replayed

pytestmark = [*MARKS, pytest.mark.usefixtures("replaying")]


def doubled(x):
    """By way of a part of zeros, seen as another dtype."""
    out, zeros = torch.empty_like(x), torch.zeros(40)
    part = zeros.view(torch.int32)[36:].view(torch.float32)[:2]
    launch(clear_kernel, (1,))(out, SIZE=2)
    for _ in range(2):
        add(x, part)
    add(part, out)
    return (out,)


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


def test_memory_of_calls_is_bounded(monkeypatch):
    monkeypatch.setattr(replay, "MOST", 3)
    again = replayed(by_parts)
    for size in range(2, 9):
        again(torch.zeros(size))
        assert len(replay._calls) <= 3
