"""Two gloo processes in other people's wrappers end with the codebook of one process on the joined batch."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dqcore.codebook import Gradient, KMeans

spec = importlib.util.spec_from_file_location("wrappers", Path(__file__).with_name("wrappers.py"))
wrappers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wrappers)

OPTIONS = {"fsdp2-projected": {"codebook_dim": 2}, "fsdp2-gradient": {"learning": Gradient()}}
PACKAGES = {"accelerate": "accelerate", "fabric": "lightning_fabric"}


def two_processes(names, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        command = [sys.executable, wrappers.__file__, names, rank, str(folder)]
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place |= {"LOCAL_WORLD_SIZE": "2", "NODE_RANK": "0", "GROUP_RANK": "0"}
        environment = {**os.environ, **place}
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    for started in processes:
        _, errors = started.communicate(timeout=400)
        assert started.returncode == 0, errors


def check(name, folder):
    first, second = (torch.load(f"{folder}/{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    model = wrappers.build(**OPTIONS.get(name, {}))
    before = model.quantizer.codes.detach().clone()
    wrappers.train(model)
    for key, value in model.state_dict().items():
        assert torch.equal(first[key], second[key]), (name, key)
        torch.testing.assert_close(first[key], value, rtol=1e-6, atol=1e-6)
    assert not torch.equal(model.quantizer.codes, before)


@pytest.mark.slow
def test_sharded_and_replicated_models_equal_one_process(tmp_path):
    names = ["ddp", "ddp-without-buffers", "fsdp2", "fsdp2-projected", "fsdp2-gradient", "fsdp2-kmeans"]
    two_processes(",".join(names), tmp_path)
    for name in names[:-1]:
        check(name, tmp_path)
    # k-means looks at the first process's vectors, so the codebook is another one than a single process's.
    first, second = (torch.load(tmp_path / f"fsdp2-kmeans-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first["quantizer.initialised"] and len(first["quantizer.codebook.weight"][:-1].unique(dim=0)) == 16
    assert KMeans().needs_data


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_launchers_equal_one_process(name, tmp_path):
    pytest.importorskip(PACKAGES[name])
    two_processes(name, tmp_path)
    check(name, tmp_path)
