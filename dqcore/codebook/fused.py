"""An update of a codebook by the op ``codebook_update``, one launch; ``learning`` does the same in many."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore import backends
from dqcore.codebook.modules import Codebook, EMACodebook
from dqcore.codebook.strategies import RandomRestart
from dqcore.distributed import num_processes
from dqcore.ops import CodeSums, Lookup, codebook_update

__all__ = ["has_op", "move", "update"]


def has_op(codebook: Codebook, restart: object, maps: list[Tensor], lookup: Lookup) -> bool:
    """Whether the op knows this codebook and its restart, has all of the batch, and is faster."""
    if not (restart is None or type(restart) is RandomRestart) or lookup.statistics is None or num_processes() > 1:
        return False
    return maps[-1].dtype is not torch.float64 and _knows(codebook, lookup.statistics.sums)


def _knows(codebook: Codebook, sums: Tensor) -> bool:
    """Whether the op can move this codebook by such sums, on a device where that is faster."""
    if type(codebook) is not EMACodebook or torch._C._are_functorch_transforms_active():
        return False
    weight = codebook.weight
    if backends.route(weight.device) != "gpu" or not backends.available("triton", weight.device):
        return False
    state = (weight, codebook.cluster_size, codebook.embed_sum, sums)
    return all(values.dtype is torch.float32 and values.is_contiguous() for values in state)


def move(codebook: Codebook, counts: Tensor, sums: Tensor) -> None:
    """Learn from statistics alone, of all parts of a batch and all processes; by the op where it knows the codebook."""
    if not _knows(codebook, sums):
        codebook.update(counts, sums)
        return
    assert isinstance(codebook, EMACodebook)
    empty = sums.new_empty(0, sums.shape[1], 1, 1)  # nothing is revived, so no vectors are needed
    places, error = torch.empty((0, 1, 1), dtype=torch.int64, device=sums.device), sums.new_empty(0, 1, 1)
    looked = Lookup(places, empty, error, CodeSums(counts, sums))
    update(codebook, None, [empty], places, looked)


def update(codebook: Codebook, restart: object, maps: list[Tensor], grain: Tensor, lookup: Lookup) -> None:
    """Learn from a lookup, and revive unused codes by its vectors; for what :func:`has_op` takes."""
    assert isinstance(codebook, EMACodebook) and (restart is None or isinstance(restart, RandomRestart))
    state = (codebook.weight, codebook.cluster_size, codebook.idle, codebook.embed_sum)
    threshold = None if restart is None else restart.threshold
    codebook_update(state, lookup, maps, grain, decay=codebook.decay, eps=codebook.eps, threshold=threshold)
