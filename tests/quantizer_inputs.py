"""A small input of a quantizer, and the state of one."""

import torch


def inputs(levels=2, batch=2, dim=8, height=3, width=4, grad=True):
    maps = [torch.randn(batch, dim, height << g, width << g, requires_grad=grad) for g in range(levels)]
    return maps, torch.randint(0, levels, (batch, height, width))


def buffers(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
