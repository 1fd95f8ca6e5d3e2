"""What the host does in a training step beside launching, in calls of Python and allocations: they can be counted."""

import sys
import types
from collections import Counter

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from dqcore import DynamicQuantizer, backends
from dqcore.codebook import PAPER
from dqcore.kernels import common, dynamic_lookup_backward, lookup_step, replay
from dqcore.kernels import launch as module
from dqcore.kernels.launch import Known

LAUNCHERS = {lookup_step: "lookup_step_fwd", dynamic_lookup_backward: "dynamic_lookup_bwd"}
ALLOCATE = {"empty", "zeros", "empty_strided", "empty_like", "new_empty", "new_zeros", "zeros_like"}
#: Methods of a tensor that launch nothing.
ASK = {"data_ptr", "dim", "get_device", "is_contiguous", "is_floating_point", "is_inference", "is_neg", "numel", "size"}
ASK |= {"stride", "detach", "expand"}


def note(kernel, grid, *args, **constants):
    """A launch that does nothing."""
    if (recorder := getattr(module.noting, "recorder", None)) is not None:
        recorder.note(Known(lambda *sent: None, None, None, (), None, None), grid, 0, args)


@pytest.fixture
def gpu(monkeypatch):
    """Small tensors on the CPU take the way of those on a GPU, and launches do nothing."""
    if not module.SUPPORTED:
        pytest.skip("no call is made again with a Triton that makes every launch itself")
    driver = types.SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0)
    monkeypatch.setattr(replay, "INTERPRETED", False)
    monkeypatch.setattr(replay, "is_free", lambda: True)
    monkeypatch.setattr(replay.triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(module, "_launch", note)
    monkeypatch.setattr(backends, "route", lambda device: "gpu")
    monkeypatch.setattr(backends, "available", lambda kernel, device: True)
    for kernels, name in LAUNCHERS.items():
        monkeypatch.setattr(kernels, name, replay.replayed(getattr(kernels, name)))
    replay.forget()
    yield
    replay.forget()


def counted(call):
    """How often a call calls Python functions and allocates; and what else it calls of PyTorch's tensors, by name."""
    counts, computed = Counter(), Counter()

    def seen(frame, event, arg):
        if event == "call":
            counts["python"] += 1
        elif event == "c_call" and arg.__name__ in ALLOCATE:
            counts["allocations"] += 1
        elif event == "c_call" and isinstance(getattr(arg, "__self__", arg), Tensor | None) and arg.__name__ not in ASK:
            computed[arg.__name__] += 1

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return counts, computed


def training_step(**options):
    quantizer = DynamicQuantizer(32, 16, 2, nonfinite="mask", **options)
    maps = [torch.randn(1, 32, 2 << g, 2 << g, requires_grad=True) for g in range(2)]
    grain, grad = torch.ones(1, 2, 2, dtype=torch.int64), torch.randn(1, 32, 4, 4)

    def step():
        out = quantizer(maps, grain)
        torch.autograd.grad([out.map, out.loss], maps, [grad, None])

    return step


@pytest.mark.skipif(not common.INTERPRETED, reason="counts what a machine without a GPU stands in for")
@pytest.mark.parametrize("options", [{}, PAPER], ids=["default", "paper"])
def test_a_training_step_takes_the_host_little(gpu, options):
    step = training_step(**options)
    for _ in range(3):
        step()
    counts, computed = counted(step)
    assert [type(call) for call in replay._calls.values()] == [replay.Recording] * len(LAUNCHERS)
    assert counts["allocations"] <= 10 and counts["python"] <= 230, counts
    # The grains of a CPU are checked, and the loss has a gradient of one.
    assert computed == Counter(["min", "max", "ones_like"]), computed
    assert sum(len(call.launches) for call in replay._calls.values()) <= 12
