"""Training step of ``DynamicQuantizer``: forward, backward and EMA, against vector-quantize-pytorch and the formula."""

import pytest
import torch
from rows import beside, compare, missing

import dqcore
from dqcore.testing import assert_nearest

SHAPES = {"cpu": (8, 256, 32, 1024), "cuda": (32, 256, 32, 1024)}  # images, channels, cells a side, codes
TINY = (2, 8, 4, 20)
TARGET = {"seconds": 220e-6, "speedup": {"vector_quantize_pytorch": 8}}
EAGER = {"speedup": {"formula": 2, "vector_quantize_pytorch": 4}}


class Formula(torch.nn.Module):
    """The layer as the method's released code writes it: every cell, one-hot statistics, EMA of the codes."""

    def __init__(self, dim, size, decay=0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.empty(size, dim).uniform_(-1 / size, 1 / size))
        self.register_buffer("sizes", torch.ones(size))
        self.register_buffer("sums", self.codes.clone())

    def forward(self, features, grain):
        """Features on the finest grid, from which coarse regions are averaged and repeated."""
        coarse = torch.nn.functional.avg_pool2d(features, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        fine = grain.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None] == 1
        merged = torch.where(fine, features, coarse).permute(0, 2, 3, 1)
        flat = merged.reshape(-1, merged.shape[-1])
        square = flat.square().sum(1, keepdim=True) + self.codes.square().sum(1)
        codes = torch.addmm(square, flat, self.codes.T, alpha=-2).argmin(1)
        quantized = self.codes[codes].view_as(merged)
        loss = 0.25 * (quantized.detach() - merged).square().mean()
        with torch.no_grad():
            hot = torch.nn.functional.one_hot(codes, len(self.codes)).to(flat.dtype)
            self.sizes.lerp_(hot.sum(0), 1 - self.decay)
            self.sums.lerp_(hot.T @ flat, 1 - self.decay)
            self.codes.copy_(self.sums / self.sizes.clamp_min(1e-5)[:, None])
        return (merged + (quantized - merged).detach()).permute(0, 3, 1, 2), codes, loss


def step(layer, features, grad, *grain):
    """One training step of a layer that returns (quantized, codes, loss)."""
    leaves = list(features) if isinstance(features, (list, tuple)) else [features]

    def run():
        quantized, _, loss = layer(features, *grain)
        return torch.autograd.grad([quantized, loss.sum()], leaves, [grad, None])

    return run


def problem(device, fine_ratio):
    """A quantizer, maps, a grain map and the gradient of the result."""
    images, dim, side, size = SHAPES[device]
    torch.manual_seed(0)
    coarse = torch.randn(images, dim, side // 2, side // 2, device=device, requires_grad=True)
    fine = torch.randn(images, dim, side, side, device=device, requires_grad=True)
    regions = torch.rand(images, (side // 2) ** 2, device=device).argsort(1) < fine_ratio * (side // 2) ** 2
    grain = regions.long().view(images, side // 2, side // 2)
    quantizer = dqcore.DynamicQuantizer(dim, size, num_granularities=2).to(device)
    return quantizer, [coarse, fine], grain, torch.randn_like(fine)


@pytest.mark.parametrize("fine_ratio", [0.5, 1.0])
def bench_training_step(benchmark, device, fine_ratio):
    """With EMA, as the package has it, replayed from CUDA graphs where it can be; at least 8x on a GPU at ratio 0.5."""
    quantizer, maps, grain, grad = problem(device, fine_ratio)
    before = quantizer.codebook.codes.clone()
    codes = quantizer(maps, grain).codes
    wide = (grain[:1] == 1).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert_nearest(codes[:1][wide], maps[1].detach().permute(0, 2, 3, 1)[:1][wide], before)
    dim, size = quantizer.dim, quantizer.codebook_size
    active = torch.randn(int((4**grain).sum()), dim, device=device)
    calls = {"formula": step(Formula(dim, size).to(device), maps[1], grad, grain)}
    calls["bare product"] = lambda: active @ before.T
    dqcore.warmup(quantizer, maps, grain)
    ours = step(quantizer, maps, grad, grain)
    target = TARGET if fine_ratio == 0.5 else None
    waits = package(device, maps[1], grad)
    compare(benchmark, device, ours, calls, target, waits=waits, rounds=15,
            fine_ratio=fine_ratio, active_vectors=len(active))  # fmt: skip


def bench_eager_training_step(benchmark, device):
    """The same, launched one by one as the package is, by the clock on the wall: the host's part counts."""
    quantizer, maps, grain, grad = problem(device, 0.5)
    ours = step(quantizer, maps, grad, grain)
    calls = {"formula": step(Formula(quantizer.dim, quantizer.codebook_size).to(device), maps[1], grad, grain)}
    calls |= package(device, maps[1], grad)
    beside(benchmark, ours, calls, 15, EAGER if device == "cuda" else None)


def package(device, features, grad):
    """vector-quantize-pytorch's step on the finest grid, if it is installed; straight through, as ours is."""
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError as error:
        return {"vector_quantize_pytorch": missing(error)}
    _, dim, _, size = SHAPES[device]
    options = {"accept_image_fmap": True, "commitment_weight": 0.25, "decay": 0.99, "rotation_trick": False}
    peer = VectorQuantize(dim, codebook_size=size, **options)
    return {"vector_quantize_pytorch": step(peer.to(device), features, grad)}
