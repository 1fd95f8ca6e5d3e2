"""A small input of a quantizer, the state of one, and kinds of quantizers."""

import torch

from dqcore.codebook import Gradient, KMeans, RandomRestart
from dqcore.estimators import Cosine, Rotation

#: Arguments of quantizers that go different ways, by name.
WAYS = {
    "plain": {},
    "projected": {"codebook_dim": 3},
    "cosine": {"metric": Cosine()},
    "projected-cosine": {"metric": Cosine(), "codebook_dim": 3},
    "rotation": {"estimator": Rotation()},
    "gradient": {"learning": Gradient(), "restart": RandomRestart()},
    "kmeans": {"initialisation": KMeans(2), "restart": RandomRestart()},
}


def inputs(levels=2, batch=2, dim=8, height=3, width=4, grad=True):
    maps = [torch.randn(batch, dim, height << g, width << g, requires_grad=grad) for g in range(levels)]
    return maps, torch.randint(0, levels, (batch, height, width))


def buffers(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
