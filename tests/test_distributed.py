"""Several processes as one: sums, broadcasts and gradients of two gloo processes."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dqcore import distributed
from dqcore.distributed import (
    World,
    from_first_process,
    join_world,
    num_processes,
    rows_of_all_processes,
    sum_over_processes,
)

LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
shared.process(int(sys.argv[2]), sys.argv[3])
"""


def process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    distributed.BUCKET = 3
    world = World(rank, 2, torch.device("cpu"))
    values = torch.tensor([1.0, 2.0]) * (rank + 1)
    assert num_processes() == 2
    assert world.sum(values).tolist() == sum_over_processes(values).tolist() == [3, 6]
    assert world.mean(values).tolist() == [1.5, 3] and values.tolist() == [rank + 1, 2 * rank + 2]
    assert from_first_process(torch.full((2, 3), float(rank)).mT).tolist() == [[0, 0]] * 3
    assert rows_of_all_processes(torch.full((2 * rank, 2), rank)).tolist() == [[1, 1]] * 2
    assert rows_of_all_processes(torch.full((2 - rank,), rank)).tolist() == [0, 0, 1]
    assert world.gather(f"process {rank}") == ["process 0", "process 1"]
    torch.manual_seed(rank)
    layer = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    world.broadcast(layer)
    assert torch.equal(*world.gather(layer.weight.detach()))
    if rank == 1:
        layer.bias.grad = torch.tensor([2.0, 4.0, 6.0])
    world.average_gradients(layer.parameters())
    assert layer.bias.grad.tolist() == [1, 2, 3] and not layer.weight.grad.any()
    world.barrier()
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    commands = [[sys.executable, "-c", LOAD, __file__, str(rank), str(tmp_path)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for started in processes:
        _, errors = started.communicate(timeout=120)
        assert started.returncode == 0, errors


def test_alone_nothing_is_started(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join_world("auto")
    assert (world.rank, world.size) == (0, 1) and not torch.distributed.is_initialized()
    assert world.gather("x") == ["x"] and world.mean(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(ValueError, match="device: 'tpu' cannot be used here"):
        join_world("tpu")


def test_the_callers_random_state_is_left_alone():
    before = torch.get_rng_state()
    with World(0, 1, torch.device("cpu")).fork_rng():
        torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_of_several_gpus_all_keep_their_random_states(monkeypatch):
    """``torch.manual_seed`` seeds each of them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: list(devices))
    assert World(0, 1, torch.device("cuda:1")).fork_rng() == [0, 1, 2]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert World(0, 1, torch.device("cpu")).fork_rng() == []  # nor does this start a GPU
