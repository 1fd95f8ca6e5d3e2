"""How the processes of a prior's run share its weights: each holds all of them, or its part."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dqcore.distributed import World
from dqcore.training.shards import whole

__all__ = ["Replicated", "Sharded", "shard", "whole_model"]


class Replicated:
    """Every process holds the whole model, and gradients are averaged while the backward pass goes on.

    Args:
        model: Prior, on the run's device.
        world: All processes.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self.model: Any = model
        if world.size > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # newer releases rename an option
                self.model = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def accumulating(self) -> AbstractContextManager[object]:
        """A context whose backward passes add up gradients here, for a later one to average."""
        parallel = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if parallel else contextlib.nullcontext()


class Sharded:
    """Every process holds a part of each weight (FSDP2), and gathers the whole of a block while it computes with it.

    All processes must therefore run the network equally often.

    Args:
        model: Prior that :func:`shard` was called with.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """A context whose backward passes add up gradients here, for a later one to average."""
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)


def shard(model: nn.Module, world: World, *, autocast: bool) -> None:
    """Split the weights of a prior over all processes, in place: each transformer block for itself, then the rest.

    With ``autocast`` the linear layers of blocks are gathered in bfloat16, which is what they compute in; all else,
    with gradients and the optimiser, stays in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in model.children():
        for block in getattr(part, "blocks", []):
            for linear in (block.attention, block.mlp) if autocast else ():
                fully_shard(linear, mesh=mesh, mp_policy=policy)
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole_model(model: Any, world: World, *, everywhere: bool = False) -> Any:
    """A sharded prior in one piece on the CPU, in evaluation mode; every process must call this.

    Returns:
        The model in the first process, or in all of them; None in the others.
    """
    state = {}
    for name, value in model.state_dict().items():
        full = whole(value)
        if everywhere or world.is_main:
            state[name] = full.cpu()
    if not state:
        return None
    kind = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("dqcore.models"))
    with torch.random.fork_rng(devices=[]):
        plain: Any = kind(model.config)
    plain.load_state_dict(state)
    return plain.eval()
