"""A codebook under FSDP2 outside a forward pass, and one whose processes drew other codes."""

import pytest
from processes import launch

SCRIPT = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from dqcore import DynamicQuantizer
from dqcore.codebook import Gradient

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, mesh, x = dist.get_rank(), init_device_mesh("cpu", (2,)), torch.randn(2, 4, 3, 3)

def of_all(tensor):
    found = [None, None]
    dist.all_gather_object(found, tensor.detach().clone())
    return found

model = nn.Sequential(nn.Conv2d(4, 4, 1), DynamicQuantizer(4, 15, learning=Gradient()))
fully_shard(model, mesh=mesh)
model(x)
model.reshard()
codes = torch.arange(60.0).view(15, 4)
model[1].codes = codes
assert torch.equal(model[1].codes, codes)
assert torch.equal(model[1].embed(torch.tensor([[3, 0]]))[0].T, codes[[3, 0]])
model[1].initialise(torch.ones(2, 4, 3, 3))

with torch.device("meta"):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), DynamicQuantizer(4, 16, restart=None))
fully_shard(model, mesh=mesh)
torch.manual_seed(rank)
model.to_empty(device="cpu")
nn.init.ones_(model[0].weight)
nn.init.zeros_(model[0].bias)
assert not torch.equal(*of_all(model[1].codes))
for _ in range(3):
    model(torch.randn(2, 4, 3, 3))
assert torch.equal(*of_all(model[1].codes))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_codes_of_all_processes():
    for code, _, errors in launch(SCRIPT, size=2):
        assert code == 0, errors
