"""Sequences of any lengths packed end to end: where each lies, what its queries see, and the checks of both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.backends import host_knows
from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor

__all__ = [
    "Sequence",
    "check_prefixes",
    "check_seqlens",
    "check_window",
    "scale_of",
    "seen_from",
    "sequences",
    "size_of",
    "visible_keys",
]


#: Longer than any sequence: a window's side of so many keys is open. Kernels add rows to a side in 32 bits.
FAR = 2**30


class Sequence(NamedTuple):
    """One sequence of a packed batch.

    Attributes:
        rows: Where its queries lie in ``q``.
        keys: Where its keys and values lie in ``k`` and ``v``.
        prefix: How many of its first keys are seen by all its queries.
    """

    rows: slice
    keys: slice
    prefix: int


def size_of(part: slice) -> int:
    """The length of a slice."""
    return part.stop - part.start


def sequences(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, prefix_lengths: Tensor | None) -> Iterator[Sequence]:
    """The sequences that have both queries and keys. On a GPU the host waits for their lengths."""
    first, key = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    prefix = [0] * len(first) if prefix_lengths is None else prefix_lengths.tolist()
    for b in range(len(first) - 1):
        if first[b] < first[b + 1] and key[b] < key[b + 1]:
            yield Sequence(slice(first[b], first[b + 1]), slice(key[b], key[b + 1]), prefix[b])


def visible_keys(queries: int, keys: int, prefix: int, left: int, right: int, device: torch.device) -> Tensor:
    """Which keys each query of one sequence sees, ``(queries, keys)`` bool; a negative side of the window is open."""
    places = torch.arange(queries, device=device) + (keys - queries)
    return seen_from(places, torch.arange(keys, device=device), prefix, left, right)


def seen_from(places: Tensor, keys: Tensor, prefix: int, left: int, right: int) -> Tensor:
    """Which of some ``keys (m,)`` are seen by queries that stand at the keys ``places (n,)``: ``(n, m)`` bool."""
    place = places[:, None]
    seen = torch.ones(len(places), len(keys), dtype=torch.bool, device=keys.device)
    if left >= 0:
        seen &= keys >= place - left
    if right >= 0:
        seen &= keys <= place + right
    return seen | (keys < prefix)


def check_seqlens(name: str, cu_seqlens: Tensor, rows: int, longest: int | None = None) -> None:
    """Raise unless ``cu_seqlens`` is ``(B + 1,)`` int32 and, on the CPU, rises from 0 to at most ``rows``.

    On the CPU also raise if a sequence is longer than ``longest``, where that is given.
    """
    check_tensor(name, cu_seqlens, dim=1, dtypes=(torch.int32,))
    if cu_seqlens.shape[0] == 0:
        raise InputError(f"{name}: expected the start of each sequence and the end of the last, got no value")
    if not host_knows(cu_seqlens):
        return
    values = cu_seqlens.tolist()
    lengths = [end - start for start, end in itertools.pairwise(values)]
    if values[0] != 0 or min(lengths, default=0) < 0 or values[-1] > rows:
        raise InputError(f"{name}: expected values rising from 0 to at most {rows} rows, got {_shortened(values)}")
    if longest is not None and max(lengths, default=0) > longest:
        side = name.removeprefix("cu_seqlens")
        raise InputError(f"max_seqlen{side}: expected at least {max(lengths)}, the longest sequence, got {longest}")


def check_prefixes(prefix_lengths: Tensor | None, batch: int, **beside: Tensor) -> None:
    """Raise unless ``prefix_lengths`` is None or ``(batch,)`` int32, on the device of the tensor beside it."""
    if prefix_lengths is None:
        return
    check_tensor("prefix_lengths", prefix_lengths, dim=1, dtypes=(torch.int32,))
    check_same_device(**beside, prefix_lengths=prefix_lengths)
    if prefix_lengths.shape[0] != batch:
        raise InputError(f"prefix_lengths: expected {batch}, one for each sequence, got {len(prefix_lengths)}")


def _shortened(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:4]))}, ..., {values[-1]}]"


def check_window(window_size: tuple[int, int], causal: bool) -> tuple[int, int]:
    """``(left, right)``, -1 for a side that is open or has FAR keys or more; in causal attention ``right`` is 0."""
    if len(window_size) != 2 or min(window_size) < -1:
        raise InputError(f"window_size: expected (left, right), each at least -1, got {window_size}")
    left, right = (int(side) if side < FAR else -1 for side in window_size)
    return left, 0 if causal else right


def scale_of(softmax_scale: float | None, dim: int) -> float:
    """The factor on scores, ``dim ** -0.5`` by default; raises unless it is positive."""
    if softmax_scale is not None and not 0 < softmax_scale < float("inf"):
        raise InputError(f"softmax_scale: expected a positive number, got {softmax_scale}")
    return dim**-0.5 if softmax_scale is None else float(softmax_scale)
