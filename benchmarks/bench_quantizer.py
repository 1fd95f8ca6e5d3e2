"""Training step of ``DynamicQuantizer``: forward, backward and EMA, against vector-quantize-pytorch and a product."""

import pytest
import torch

import dqcore
from dqcore.testing import assert_nearest, interleaved_medians

BATCH, DIM, GRID, SIZE = 8, 256, 32, 1024


def step(quantizer, features, grad, *grain):
    """One training step of a layer that returns (quantized, codes, loss)."""

    def run():
        quantized, _, loss = quantizer(features, *grain)
        torch.autograd.backward([quantized, loss.sum()], [grad, None])

    return run


@pytest.mark.parametrize("fine_ratio", [0.5, 1.0])
def bench_training_step(benchmark, device, fine_ratio):
    """At least 6x vector-quantize-pytorch at ratio 0.5 (4x all fine), at most 2x the product of its active vectors."""
    torch.manual_seed(0)
    coarse = torch.randn(BATCH, DIM, GRID // 2, GRID // 2, device=device, requires_grad=True)
    fine = torch.randn(BATCH, DIM, GRID, GRID, device=device, requires_grad=True)
    regions = torch.rand(BATCH, (GRID // 2) ** 2, device=device).argsort(1) < fine_ratio * (GRID // 2) ** 2
    grain = regions.long().view(BATCH, GRID // 2, GRID // 2)
    grad = torch.randn_like(fine)
    quantizer = dqcore.DynamicQuantizer(DIM, SIZE, num_granularities=2).to(device)
    before = quantizer.codebook.codes.clone()
    codes = quantizer([coarse, fine], grain).codes
    check = fine.detach().permute(0, 2, 3, 1)[:1][(grain[:1] == 1).repeat_interleave(2, 1).repeat_interleave(2, 2)]
    assert_nearest(codes[:1][(grain[:1] == 1).repeat_interleave(2, 1).repeat_interleave(2, 2)], check, before)

    ours = step(quantizer, [coarse, fine], grad, grain)
    active = torch.randn(int((4**grain).sum()), DIM, device=device)

    @torch.no_grad()
    def product():
        return active @ quantizer.codebook.codes.T

    mine, bare = interleaved_medians(ours, product, rounds=25)
    benchmark.extra_info |= {"fine_ratio": fine_ratio, "active_vectors": len(active), "times_bare_product": mine / bare}
    package = pytest.importorskip("vector_quantize_pytorch")
    peer = package.VectorQuantize(DIM, codebook_size=SIZE, accept_image_fmap=True, decay=0.99, commitment_weight=0.25)
    mine, theirs = interleaved_medians(ours, step(peer.to(device), fine, grad), rounds=9)
    benchmark.extra_info["speedup_over_vector_quantize_pytorch"] = theirs / mine
    benchmark(ours)
