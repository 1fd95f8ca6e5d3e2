"""A batch that goes through a tokenizer in parts, with the results of the whole.

Only inputs and outputs of the parts are kept; the backward pass computes each part again (activation checkpointing). So
everything that looks at the whole batch, such as the discriminator, sees all of it before the first gradient is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dqcore.distributed import World

__all__ = ["Output", "forward_in_parts", "gradient_at", "one_batch"]


class Output(NamedTuple):
    """What a training step takes of a tokenizer's output.

    Attributes:
        reconstruction: ``(B, 3, H, W)``.
        commitment_loss: Scalar.
        budget_loss: Scalar.
        grain: ``(B, h, w)`` or None.
        before_last: Of a batch in parts, what came into the decoder's last layer.
    """

    reconstruction: Tensor
    commitment_loss: Tensor
    budget_loss: Tensor
    grain: Tensor | None
    before_last: list[Tensor] | None = None


def forward_in_parts(model: Any, images: Tensor, number: int) -> Output:
    """A tokenizer's output for images ``(B, 3, H, W)`` in ``number`` parts of equal size."""
    last, budget = model.get_submodule("decoder.conv_out"), getattr(model, "budget", nn.Identity())
    parts, before_last = [], []
    with _inputs_of(budget) as gates:
        for part in images.chunk(number):
            with _inputs_of(last) as inputs:
                parts.append(checkpoint(model, part, use_reentrant=False))
            before_last.append(inputs[0])  # a gain router decodes again, to try other granularities
    budget_loss = budget(torch.cat(gates)) if gates else _mean([part.budget_loss for part in parts])
    return Output(
        torch.cat([part.reconstruction for part in parts]),
        _mean([part.commitment_loss for part in parts]),
        budget_loss,
        None if parts[0].grain is None else torch.cat([part.grain for part in parts]),
        before_last,
    )


def gradient_at(layer: Any, output: Output, values: Tensor) -> Tensor:
    """Gradient of the decoder's last layer's weight, float32.

    Args:
        layer: The layer.
        output: The tokenizer's output.
        values: Gradient with respect to the reconstruction, ``(B, 3, H, W)``.
    """

    def through(made: Tensor, some: Tensor) -> Tensor:
        (result,) = torch.autograd.grad(made, layer.weight, some.to(made.dtype), retain_graph=True)
        return result.float()

    if output.before_last is None:
        return through(output.reconstruction, values)
    # The layer runs once more: to go through the graphs of the parts would compute all of them again.
    pairs = zip(output.before_last, values.chunk(len(output.before_last)), strict=True)
    return torch.stack([through(layer(x.detach()), some) for x, some in pairs]).sum(0)


@contextlib.contextmanager
def one_batch(model: Any, images: Tensor, number: int, world: World) -> Iterator[None]:
    """Within this, a codebook learns from all parts of a batch together at the end, and starts from all of them."""
    quantizer: Any = getattr(model, "quantizer", None)
    if number == 1 or not hasattr(quantizer, "accumulate"):
        yield
        return
    if hasattr(model, "scan") and not quantizer.started:
        with world.fork_rng():
            scanned = [model.scan(part) for part in images.chunk(number)]
        maps = [torch.cat(some) for some in zip(*(features for features, _ in scanned), strict=True)]
        quantizer.initialise(maps, torch.cat([routing.grain for _, routing in scanned]))
    with quantizer.accumulate():
        yield


@contextlib.contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """While this is open, what a module is called with is kept."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        yield found
    finally:
        handle.remove()


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
