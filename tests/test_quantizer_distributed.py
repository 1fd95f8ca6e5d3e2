"""Two gloo processes must end with the codebook of one process on the joined batch."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dqcore import DynamicQuantizer
from dqcore.codebook import EMA, KMeans, RandomRestart

STEPS = 3


def batches(rank=None):
    gen = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        z, grain = torch.randn(5, 4, 8, 8, generator=gen), torch.randint(0, 2, (5, 4, 4), generator=gen)
        part = slice(None) if rank is None else (slice(0, 2), slice(2, 5))[rank]  # unequal shares
        yield z[part], grain[part]


def run(quantizer, rank=None):
    for z, grain in batches(rank):
        quantizer(z, grain)
    return quantizer.state_dict()


def process(rank, folder, quantizer, others):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        torch.manual_seed(rank)
        results = [run(copy.deepcopy(module), rank) for module in (quantizer, *others)]  # arrives in shared memory
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    quantizer = DynamicQuantizer(4, 16, 2, learning=EMA(decay=0.8))
    expected = run(copy.deepcopy(quantizer))
    others = [
        DynamicQuantizer(4, 16, 2, initialisation=KMeans()),
        DynamicQuantizer(4, 99, 2, restart=RandomRestart(0.99)),
    ]
    mp.spawn(process, (str(tmp_path), quantizer, others), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for one, two in zip(first, second, strict=True):
        for name, value in one.items():
            assert torch.equal(value, two[name]), name
    for name, value in expected.items():
        torch.testing.assert_close(first[0][name], value, rtol=1e-5, atol=1e-6)
