"""Two gloo processes in other people's wrappers end with the codebook of one process on the joined batch."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

spec = importlib.util.spec_from_file_location("wrappers", Path(__file__).with_name("wrappers.py"))
wrappers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wrappers)

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
    model = wrappers.build(**wrappers.OPTIONS.get(name, {}))
    before = model.quantizer.codes.detach().clone()
    wrappers.train(model)
    for key, value in model.state_dict().items():
        assert torch.equal(first[key], second[key]), (name, key)
        torch.testing.assert_close(first[key], value, rtol=1e-6, atol=1e-6)
    assert not torch.equal(model.quantizer.codes, before)


@pytest.mark.slow
def test_sharded_and_replicated_models_equal_one_process(tmp_path):
    names = ["ddp", "ddp-without-buffers", "fsdp2", *wrappers.OPTIONS]
    two_processes(",".join(names), tmp_path)
    for name in names:
        check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_launchers_equal_one_process(name, tmp_path):
    pytest.importorskip(PACKAGES[name])
    two_processes(name, tmp_path)
    check(name, tmp_path)
