"""The CUDA kernels of csrc, compiled for the CPU through ``cuda_on_cpu`` and held against the references.

What a GPU adds (memory order between blocks, coalescing, launch limits) this cannot show; indices, barriers, bounds,
alignment and sums it can.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dqcore
from dqcore.ops import pack_codes, unpack_codes
from dqcore.ops.layout import count_codes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]
# images, channels, rows, columns, granularities
SHAPES = [(2, 40, 2, 5, 2), (1, 72, 1, 35, 2), (2, 3, 1, 9, 3), (1, 8, 2, 3, 4), (0, 4, 1, 1, 2), (3, 1, 70, 1, 1)]


@pytest.mark.parametrize(("driver", "expected"), [("12080", False), ("13000", True), ("14000", True), ("0", True)])
def test_an_older_driver_gets_the_reference(module, driver, expected):
    """As where nvcc is newer than the CUDA that PyTorch brings: launches would fail."""
    script = "import _C; print(_C.has_cuda)"
    folder = Path(module.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"CUDA_ON_CPU_DRIVER": driver, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{expected}\n"


def both(run):
    """What the kernels and the references say."""
    with dqcore.backend("reference"):
        expected = run()
    return run(), expected


@pytest.mark.parametrize("order", ["row-first", "region-first"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes(on_cpu, shape, order):
    images, _, rows, columns, granularities = shape
    grain = torch.randint(0, granularities, (images, rows, columns))
    codes = torch.randint(0, 512, (images, rows << (granularities - 1), columns << (granularities - 1)))
    actual, expected = both(lambda: pack_codes(codes, grain, order, granularities))
    assert actual == expected
    actual, expected = both(lambda: unpack_codes(expected))
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features(on_cpu, shape, dtype, channels_last):
    images, channels, rows, columns, granularities = shape
    grain = torch.randint(0, granularities, (images, rows, columns))
    features = torch.randn(images, channels, rows << (granularities - 1), columns << (granularities - 1)).to(dtype)
    features = features.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    for mean in (False, True):
        layout = (grain, "row-first", granularities, mean)
        actual, packed = both(lambda: torch.ops.dqcore.pack_features(features, *layout, count_codes(grain)))  # noqa: B023
        assert torch.equal(actual, packed)
        assert torch.equal(*both(lambda: torch.ops.dqcore.expand_features(packed, *layout, channels_last)))  # noqa: B023


def test_blocks_wider_than_a_tile(on_cpu):
    features, grain = torch.randn(1, 5, 64, 64), torch.zeros(1, 1, 1, dtype=torch.int64)
    assert torch.equal(*both(lambda: torch.ops.dqcore.pack_features(features, grain, "row-first", 7, True, 1)))


def test_what_the_cpu_refuses_stays_inside_the_buffers(on_cpu, monkeypatch):
    """Wrong grains, totals and positions: no error, for which the host would wait, and no write beyond the result."""
    grain = torch.tensor([[[5, -3, 1]]])
    monkeypatch.setattr("dqcore.ops.extension.check_total", lambda *_: None)
    features = torch.randn(1, 4, 2, 6)
    packed = torch.ops.dqcore.pack_features(features, grain, "row-first", 2, True, 9)
    clamped = torch.ops.dqcore.pack_features(features, grain.clamp(0, 1), "row-first", 2, True, 9)
    assert torch.equal(packed, clamped)
    assert torch.ops.dqcore.pack_features(features, grain, "row-first", 2, True, 2).shape == (2, 4)
    expanded = torch.ops.dqcore.expand_features(packed[:1], grain, "row-first", 2, False, False)
    assert torch.equal(expanded[0, :, 0, 2], packed[0]) and not expanded[0, :, :, :2].any()
    seq = pack_codes(torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(1, 1, 1, dtype=torch.int64))
    seq.positions[:2] = torch.tensor([4, -1])
    seq.grains[2] = 7
    unpack_codes(seq)


def test_bad_launch_has_a_name(module):
    layout = module.Layout(0, 0, 0, 0, 1, 1, 1, 1)
    error = module.pack_codes_cuda(layout, 0, module.Codes(0, 0, 0, 0), module.Stream(1, 0))
    assert module.cuda_error_name(error) == "cudaErrorInvalidDevice"
