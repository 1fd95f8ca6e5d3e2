"""A quantizer's lookup and its loss: by the ops, or by their references, which a graph of PyTorch alone can hold."""

from __future__ import annotations

from torch import Tensor

from dqcore.nn.arranged import Arranged
from dqcore.nn.finite import uncount
from dqcore.ops import CodeSums, Lookup
from dqcore.ops.dynamic_lookup import lookup_of_checked
from dqcore.ops.lookup_loss import loss_of_checked
from dqcore.ops.reference.dynamic_lookup import dynamic_lookup_reference
from dqcore.ops.reference.lookup_loss import lookup_loss_reference

__all__ = ["look_up", "loss_of"]


def look_up(
    maps: list[Tensor], given: Arranged, codes: Tensor, bad_cells: Tensor | None, *, with_sums: bool, portable: bool
) -> Lookup:
    """The nearest codes of the vectors that ``given`` selects.

    Args:
        maps: Maps coarse to fine, finite, scaled as the metric wants.
        given: Their grain map and mask.
        codes: ``(K, D)``, scaled likewise.
        bad_cells: Cells of the finest grid ``(B, H, W)`` whose vector was not finite, or None: they get code -1 and
            error 0, and are not counted.
        with_sums: Whether the statistics of the codes are wanted.
        portable: Whether to call no op of ours.
    """
    if portable or maps[-1].numel() == 0:
        found = dynamic_lookup_reference(maps, given.selected, codes, with_sums)
        lookup = Lookup(*found[:3], CodeSums(*found[3:]) if with_sums else None)
    else:
        lookup = lookup_of_checked(maps, given.grain, codes, given.mask, with_sums)
    if bad_cells is None:
        return lookup
    statistics = lookup.statistics
    if statistics is not None:
        counts = uncount(statistics.counts, lookup.codes, bad_cells, given.selected, len(maps))
        statistics = CodeSums(counts, statistics.sums)
    error = lookup.error.masked_fill(bad_cells, 0)
    return Lookup(lookup.codes.masked_fill(bad_cells, -1), lookup.quantized, error, statistics)


def loss_of(lookup: Lookup, dim: int, commitment: float, *, portable: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, commitment part and codebook part of a lookup; see :func:`dqcore.ops.lookup_loss`."""
    if portable or lookup.error.numel() == 0:
        _, commitment_part, rest, _ = lookup_loss_reference(lookup.error, lookup.codes, dim, commitment)
        rest = rest.detach()
        return commitment_part + rest, commitment_part, rest
    return loss_of_checked(lookup.error, lookup.codes, dim, commitment)
