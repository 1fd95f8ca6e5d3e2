"""Two gloo processes must end with the codebook of one process on the joined batch."""

import pytest
import torch
import torch.distributed as dist
from processes import launch

import dqcore
from dqcore import DynamicQuantizer, backends
from dqcore.codebook import EMA, KMeans, RandomRestart

STEPS = 3
LOAD = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
shared.process(int(os.environ["RANK"]), *sys.argv[2:])
"""


def quantizers(backend):
    torch.manual_seed(11)
    parts = EMA(decay=0.8, every=2)
    if backend == "interpreter":
        return [DynamicQuantizer(4, 30, 2, learning=parts, restart=RandomRestart(0.99))]
    return [
        DynamicQuantizer(4, 16, 2, learning=EMA(decay=0.8)),
        DynamicQuantizer(4, 16, 2, initialisation=KMeans()),
        DynamicQuantizer(4, 99, 2, restart=RandomRestart(0.99)),
        DynamicQuantizer(4, 99, 2, learning=parts),
        DynamicQuantizer(4, 9999, 2, initialisation=KMeans(), restart=RandomRestart(0.99)),
    ]


def run_all(backend, rank=None):
    modules = quantizers(backend)
    torch.manual_seed(rank or 0)
    with dqcore.backend(backend):
        return [run(module, rank) for module in modules]


def run(quantizer, rank=None):
    """Train on this process's unequal share of every batch; all of it without a rank."""
    gen = torch.Generator().manual_seed(7)
    part = slice(None) if rank is None else (slice(0, 2), slice(2, 5))[rank]
    for _ in range(STEPS):
        z, grain = torch.randn(5, 4, 8, 8, generator=gen), torch.randint(0, 2, (5, 4, 4), generator=gen)
        quantizer(z[part], grain[part])
    return quantizer.state_dict()


def process(rank, folder, backend):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(run_all(backend, rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "interpreter"])
def test_two_processes_equal_one(tmp_path, backend):
    """In the interpreter, too, where both take in parts of a batch by ops."""
    if backend == "interpreter" and not backends.interpreting():
        pytest.skip("needs Triton's interpreter")
    expected = run_all(backend)
    for code, _, errors in launch(LOAD, __file__, tmp_path, backend, size=2):
        assert code == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for one, two in zip(first, second, strict=True):
        for name, value in one.items():
            assert torch.equal(value, two[name]), name
    for one, alone in zip(first, expected, strict=True):
        for name, value in alone.items():
            torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-6)
