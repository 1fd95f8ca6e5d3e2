"""Two gloo processes in other people's wrappers end with the codebook of one process on the joined batch."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import launch, places

spec = importlib.util.spec_from_file_location("wrappers", Path(__file__).with_name("wrappers.py"))
wrappers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wrappers)

PACKAGES = {"accelerate": "accelerate", "fabric": "lightning_fabric"}


def started_anew(name, folder):
    """Other people's launchers may look at how a process was started."""
    command, more = [sys.executable, wrappers.__file__, name, folder], {"NODE_RANK": "0", "GROUP_RANK": "0"}
    pipes, more = {"stderr": subprocess.PIPE, "text": True}, more | {"LOCAL_WORLD_SIZE": "2"}
    processes = [subprocess.Popen(command, env=place | more, **pipes) for place in places(2)]
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
    for code, _, errors in launch(Path(wrappers.__file__).read_text(), ",".join(names), tmp_path, size=2):
        assert code == 0, errors
    for name in names:
        check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_launchers_equal_one_process(name, tmp_path):
    pytest.importorskip(PACKAGES[name])
    started_anew(name, tmp_path)
    check(name, tmp_path)
