"""One of two processes that train a small model inside somebody's wrapper: ``wrappers.py NAMES FOLDER``."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dqcore import DynamicQuantizer
from dqcore.codebook import EMA, Gradient, KMeans, RandomRestart

STEPS = 20


#: Arguments of the quantizer, by the name of the run; a run that is not here has the defaults.
OPTIONS = {
    "fsdp2-paper": {"learning": EMA(decay=0.99), "restart": None},
    "fsdp2-projected": {"codebook_dim": 2},
    "fsdp2-kmeans": {"initialisation": KMeans(), "restart": RandomRestart(0.9)},
    "fsdp2-gradient": {"learning": Gradient(), "restart": None},
    "fsdp2-gradient-kmeans": {"learning": Gradient(), "initialisation": KMeans(), "restart": RandomRestart(0.9)},
}


class Model(nn.Module):
    """A frozen encoder, so that the features do not depend on how gradients are averaged, and a trained decoder."""

    def __init__(self, **options):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1).requires_grad_(False)
        self.quantizer = DynamicQuantizer(4, 16, **options)
        self.decoder = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        out = self.quantizer(self.encoder(x))
        return self.decoder(out.map), out.loss


def build(**options):
    torch.manual_seed(5)
    return Model(**({"learning": EMA(decay=0.8)} | options))


def batches(rank=None):
    generator = torch.Generator().manual_seed(7)
    part = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    return [torch.randn(4, 3, 6, 6, generator=generator)[part] for _ in range(STEPS)]


def train(model, rank=None, backward=torch.Tensor.backward):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    for x in batches(rank):
        map, loss = model(x)
        backward((map - x).square().mean() + loss)
        optimizer.step()
        optimizer.zero_grad()


def state(model):
    return {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in model.state_dict().items()}


def ddp(rank, broadcast):
    model = build()
    train(DistributedDataParallel(model, broadcast_buffers=broadcast), rank)
    return state(model)


def fsdp(rank, **options):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = build(**options), init_device_mesh("cpu", (2,))
    fully_shard(model.quantizer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, rank)
    return state(model)


def accelerate(rank):
    from accelerate import Accelerator

    model, accelerator = build(), Accelerator(cpu=True)
    train(accelerator.prepare(model), rank, accelerator.backward)
    return state(model)


def fabric(rank):
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    fabric = Fabric(accelerator="cpu", devices=2, num_nodes=1, strategy=DDPStrategy(process_group_backend="gloo"))
    fabric.launch()
    model = build()
    train(fabric.setup(model), rank, fabric.backward)
    return state(model)


WRAPPERS = {
    "ddp": lambda rank: ddp(rank, True),
    "ddp-without-buffers": lambda rank: ddp(rank, False),
    "fsdp2": fsdp,
    **{name: lambda rank, name=name: fsdp(rank, **OPTIONS[name]) for name in OPTIONS},
    "accelerate": accelerate,
    "fabric": fabric,
}


if __name__ == "__main__":
    names, rank, folder = sys.argv[1].split(","), int(os.environ["RANK"]), sys.argv[2]
    if "fabric" not in names:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name in names:
        torch.save(WRAPPERS[name](rank), f"{folder}/{name}-{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
