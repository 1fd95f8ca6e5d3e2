"""``patch_entropy`` against the dense formula of the paper's code, and the memory it takes beside its images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rows import compare
from torch import Tensor

from dqcore.ops import patch_entropy

SHAPES = {"cpu": (8, 3, 256, 256), "cuda": (32, 3, 256, 256)}
TINY = (1, 3, 32, 32)
PATCH = 16
TARGET = {"seconds": 15e-6, "speedup": {"dense formula": 50}}


def dense(images: Tensor) -> Tensor:
    """One tensor of every patch, pixel and bin, as the original does it."""
    grey = 0.2989 * images[:, 0] + 0.5870 * images[:, 1] + 0.1140 * images[:, 2]
    patches = grey.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3)
    centres = torch.linspace(-1, 1, 32, device=images.device)
    share = torch.exp(-0.5 * ((patches[..., None] - centres) / 0.01) ** 2).mean(-2)
    share = share / (share.sum(-1, keepdim=True) + 1e-40) + 1e-40
    return -(share * share.log()).sum(-1)


def bench_patch_entropy(benchmark, device: str) -> None:
    """Random images; the formula is compared in float64, since 1e-40 is no number to a GPU that flushes."""
    images = torch.rand(SHAPES[device], generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    expected = torch.cat([dense(image.double()) for image in images.split(4)])
    torch.testing.assert_close(patch_entropy(images, PATCH).double(), expected, rtol=0, atol=1e-5)
    calls = {"dense formula": lambda: dense(images)}
    compare(
        benchmark, device, lambda: patch_entropy(images, PATCH), calls, TARGET, shape=SHAPES[device], patch_size=PATCH
    )


MEMORY = """
import re, torch
from dqcore.ops import patch_entropy
torch.set_num_threads(1)
read = lambda name: int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
images = torch.rand(8, 3, 256, 256)
patch_entropy(images[:1, :, :32, :32].clone(), 16)
fill = torch.ones(max(0, int((read("VmHWM") - read("VmRSS")) * 2**18)))  # or the past's peak would hide a new one
before = read("VmHWM")
patch_entropy(images, 16)
print(read("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def bench_patch_entropy_memory(benchmark) -> None:
    """Growth of a fresh process's peak resident size, MB."""
    found = benchmark.pedantic(lambda: subprocess.check_output([sys.executable, "-c", MEMORY]), rounds=1)
    benchmark.extra_info["extra_memory_mb"] = float(found)
    assert float(found) < 32
