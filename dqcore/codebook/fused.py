"""Codebook updates by the op ``codebook_update``: one launch on a GPU, where ``learning`` needs many.

There are three, from the one that costs the host least to the one that asks least of the batch:

- :func:`step`: lookup, loss and update by one call, where nothing comes between them
- :func:`update`: the update by the maps of one batch, which was looked up by one process
- :func:`update_by`: the update by statistics and drawn vectors, of several batches or processes

:func:`can_update` and :func:`can_update_by` say whether the op knows the codebook and is faster; ``step`` returns None
where it is not the way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dqcore import backends
from dqcore.codebook.draw import Drawn
from dqcore.codebook.modules import Codebook, EMACodebook, GradientCodebook
from dqcore.codebook.strategies import RandomRestart
from dqcore.distributed import num_processes
from dqcore.ops import CodeSums, Lookup, codebook_update
from dqcore.ops.lookup_step import LookupStep, can_step, lookup_step

__all__ = ["can_update", "can_update_by", "step", "update", "update_by"]

#: Dtypes of vectors that the op ``codebook_update`` takes.
LEARNT = (torch.float16, torch.bfloat16, torch.float32)


def step(
    codebook: Codebook, restart: object, maps: list[Tensor], grain: Tensor, commitment: float
) -> LookupStep | None:
    """Look up in a codebook and learn from what is found, by one call; None where separate ops have to do it.

    None also where the codebook's state has an unexpected shape or dtype: the separate ops then raise the error for it.
    """
    if type(codebook) is not EMACodebook or codebook.weight.requires_grad or num_processes() > 1:
        return None
    if not can_update_by(codebook, restart, codebook.embed_sum):
        return None
    weight, sizes, idle, sums = state = (codebook.weight, codebook.cluster_size, codebook.idle, codebook.embed_sum)
    size, dim = codebook.size, maps[-1].shape[1]
    known = weight.shape == (size + 1, dim) and sums.shape == (size, dim) and sizes.shape == idle.shape == (size,)
    if not known or maps[-1].dtype not in LEARNT or idle.dtype is not torch.int64 or not idle.is_contiguous():
        return None
    if not (0 <= codebook.decay <= 1 and 0 <= codebook.eps < math.inf):
        return None
    if not can_step(maps, grain, state):
        return None
    return lookup_step(maps, grain, state, commitment, (codebook.decay, codebook.eps, _threshold(restart)))


def can_update(codebook: Codebook, restart: object, maps: list[Tensor], lookup: Lookup) -> bool:
    """Whether :func:`update` can be called, for a lookup with sums, by one process and not in float64."""
    if lookup.statistics is None or num_processes() > 1 or maps[-1].dtype is torch.float64:
        return False
    return can_update_by(codebook, restart, lookup.statistics.sums)


def can_update_by(codebook: Codebook, restart: object, sums: Tensor) -> bool:
    """Whether :func:`update_by` can be called: the op can move this codebook by such sums, and is faster."""
    if restart is not None and type(restart) is not RandomRestart:
        return False
    kind, weight = type(codebook), codebook.weight
    if kind is GradientCodebook:  # an optimiser's parameter is not written to within a graph, nor where it is sharded
        if "_shards" in codebook.__dict__ or torch.compiler.is_compiling():
            return False
    elif kind is not EMACodebook:
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    if backends.route(weight.device) != "gpu" or not backends.available("triton", weight.device):
        return False
    return all(values.dtype is torch.float32 and values.is_contiguous() for values in (*_floats(codebook), sums))


def _floats(codebook: Codebook) -> list[Tensor]:
    """Codes, sizes, and sums if it has them."""
    sums = [codebook.embed_sum] if isinstance(codebook, EMACodebook) else []
    return [codebook.weight, codebook.cluster_size, *sums]


def update_by(codebook: Codebook, restart: object, statistics: tuple[Tensor, Tensor], drawn: Drawn | None) -> None:
    """Learn from counts and sums, and revive unused codes by vectors that were drawn before; None to revive none."""
    if drawn is None:
        sums = statistics[1]
        none = torch.empty(0, dtype=torch.int64, device=sums.device)
        drawn = Drawn(none, sums.new_empty(0, sums.shape[1]), sums.new_empty(0))
    vectors, keys = drawn.vectors[:, :, None, None], drawn.key[:, None, None]
    lookup = Lookup(keys, vectors, drawn.distance[:, None, None], CodeSums(*statistics))
    # The keys stand for grain map and codes too: of these only the sign is read, and fillers have key -1.
    update(codebook, restart, [vectors], keys, lookup, keys)


def update(
    codebook: Codebook,
    restart: object,
    maps: list[Tensor],
    grain: Tensor,
    lookup: Lookup,
    keys: Tensor | None = None,
) -> None:
    """Learn from a lookup, and revive unused codes by its vectors."""
    weight, sizes, *sums = _floats(codebook)
    state = (weight, sizes, codebook.idle, sums[0] if sums else None)
    eps = codebook.eps if isinstance(codebook, EMACodebook) else 0.0
    codebook_update(state, lookup, maps, grain, decay=codebook.decay, eps=eps, threshold=_threshold(restart), keys=keys)


def _threshold(restart: object) -> float | None:
    assert restart is None or isinstance(restart, RandomRestart)
    return None if restart is None else restart.threshold
