"""``expand_features`` and its gradient against ``repeat_interleave`` and ``where``, and a copy of as many bytes."""

import pytest
import torch
from rows import compare, hold

from dqcore.ops import expand_features
from dqcore.testing import assert_close

SHAPES = {"cpu": (32, 256, 16), "cuda": (32, 256, 16)}  # images, channels, regions a side
TINY = (2, 8, 2)
FINE, SHARE = 0.5, 0.8
FORMATS = {"planes": torch.contiguous_format, "vectors": torch.channels_last}


def _inputs(device, memory):
    """Both granularities' full maps, as an encoder makes them, and the packed vectors of the codes that exist."""
    images, channels, side = SHAPES[device]
    torch.manual_seed(0)
    grain = (torch.rand(images, side, side, device=device) < FINE).long()
    coarse, fine = (
        torch.randn(images, channels, length, length, device=device).contiguous(memory_format=memory)
        for length in (side, 2 * side)
    )
    wide = grain.repeat_interleave(2, 1).repeat_interleave(2, 2)
    parts = [
        part
        for i in range(images)
        for part in (coarse[i].permute(1, 2, 0)[grain[i] == 0], fine[i].permute(1, 2, 0)[wide[i] == 1])
    ]
    return grain, coarse, fine, torch.cat(parts)


def _where(grain, coarse, fine):
    wide = grain.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    return torch.where(wide == 1, fine, coarse.repeat_interleave(2, 2).repeat_interleave(2, 3))


def _copy_of(moved, device):
    """A copy that moves as many bytes as ours: what it reads and what it writes."""
    source = torch.randn(max(1, moved // 8), device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _hold(benchmark, seconds, device):
    share = seconds["copy"] / seconds["dqcore"]
    benchmark.extra_info["share_of_copy_bandwidth"] = share
    if device == "cuda":
        hold(benchmark, at_least={"share_of_copy_bandwidth": SHARE})


@pytest.mark.parametrize("memory", FORMATS)
def bench_expand_features(benchmark, device, memory):
    """(32, 256, 32, 32) float32, half of the regions fine."""
    grain, coarse, fine, packed = _inputs(device, FORMATS[memory])

    def run():
        return expand_features(packed, grain, num_granularities=2, memory_format=FORMATS[memory])

    assert torch.equal(run(), _where(grain, coarse, fine))
    moved = 4 * (packed.numel() + fine.numel()) + 8 * grain.numel()
    calls = {"where": lambda: _where(grain, coarse, fine), "copy": _copy_of(moved, device), "clone": fine.clone}
    seconds = compare(benchmark, device, run, calls, shape=list(fine.shape), memory=memory, bytes_moved=moved)
    _hold(benchmark, seconds, device)


@pytest.mark.parametrize("memory", FORMATS)
def bench_expand_features_backward(benchmark, device, memory):
    """The sum of each code's cells; its peer the gradient of ``where``, which ends in full maps."""
    grain, coarse, fine, packed = _inputs(device, FORMATS[memory])
    coarse, fine, packed = (tensor.requires_grad_() for tensor in (coarse, fine, packed))
    out = expand_features(packed, grain, num_granularities=2, memory_format=FORMATS[memory])
    other = _where(grain, coarse, fine)
    grad = torch.randn_like(out)

    def run():
        return torch.autograd.grad(out, packed, grad, retain_graph=True)

    by_where = torch.autograd.grad(other, (coarse, fine), grad, retain_graph=True)
    parts = zip(by_where[0].permute(0, 2, 3, 1), by_where[1].permute(0, 2, 3, 1), grain, strict=True)
    expected = torch.cat([part for c, f, g in parts for part in (c[g == 0], f[_wide(g) == 1])])
    assert_close(run()[0], expected)
    moved = 4 * (packed.numel() + fine.numel()) + 8 * grain.numel()
    calls = {
        "where": lambda: torch.autograd.grad(other, (coarse, fine), grad, retain_graph=True),
        "copy": _copy_of(moved, device),
    }
    seconds = compare(benchmark, device, run, calls, shape=list(fine.shape), memory=memory, bytes_moved=moved)
    _hold(benchmark, seconds, device)


def _wide(grain):
    return grain.repeat_interleave(2, 0).repeat_interleave(2, 1)
