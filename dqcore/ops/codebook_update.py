"""``codebook_update``: what a codebook learns from a batch, and which of its unused codes are revived."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.code_sums import CodeSums
from dqcore.ops.dynamic_lookup import Lookup
from dqcore.ops.reference.codebook_update import Update, codebook_update_reference
from dqcore.ops.registry import Implementation, is_traced, register

__all__ = ["codebook_update"]

State = tuple[Tensor, Tensor, Tensor, Tensor | None]


def codebook_update(
    state: State,
    lookup: Lookup,
    maps: Sequence[Tensor],
    grain: Tensor,
    *,
    decay: float,
    eps: float = 1e-5,
    threshold: float | None = None,
    keys: Tensor | None = None,
) -> None:
    """Move the averages of a codebook by one batch, and revive codes that fall out of use.

    Args:
        state: What is updated: codes and one padding row ``(K + 1, D)``; cluster sizes ``(K,)``; batches since each
            code was last chosen ``(K,)`` int64; averages of the vector sums ``(K, D)``, or None for codes that only
            revival moves, as those trained by gradients. All but the third float32; contiguous.
        lookup: What :func:`dqcore.ops.dynamic_lookup` found ``with_sums``.
        maps: The feature maps that were looked up; float16, bfloat16 or float32.
        grain: The grain map, ``(B, h, w)`` int64.
        decay: Share of the old averages that remains, in [0, 1]; with 1 they stay as they are.
        eps: Laplace smoothing of the cluster sizes, 0 or more.
        threshold: A code whose cluster size falls below this share of the mean becomes a vector drawn from the batch;
            None for no code. See :class:`dqcore.codebook.RandomRestart`.
        keys: The random numbers that draw the vectors, ``(B, H, W)`` int64, -1 for none whatever the codes: those that
            ``draw_vectors`` gave them. None for new ones, which cluster sizes and places decide.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes, devices or numbers do not fit, or the lookup has no sums.

    A batch without vectors moves nothing. Deterministic; the host does not wait.
    Cost: on a GPU one launch, which reads the state and the sums once.
    """
    _check(state, lookup, maps, grain)
    _check_settings(lookup, keys, decay, eps, threshold)
    assert lookup.statistics is not None
    update = Update(
        *state,
        *lookup.statistics,
        maps=list(maps),
        grain=grain,
        codes=lookup.codes,
        error=lookup.error,
        keys=keys,
        decay=decay,
        eps=eps,
        threshold=threshold,
    )
    call = torch.ops.dqcore.codebook_update if is_traced() else _op.below_autograd
    call(*update)
    if not torch.compiler.is_compiling():
        written = [tensor for tensor in state if tensor is not None]
        if state[3] is None and threshold is None:
            del written[0]  # nothing moves the codes
        torch.autograd.graph.increment_version(written)  # kernels do not count what they write


def _check(state: State, lookup: Lookup, maps: Sequence[Tensor], grain: Tensor) -> None:
    if lookup.statistics is None:
        raise InputError("lookup: expected counts and sums, as dynamic_lookup returns them with_sums")
    if len(state) != 4:
        raise InputError(f"state: expected codes, cluster sizes, ages and vector sums, got {len(state)} tensors")
    if not len(maps):
        raise InputError("maps: expected at least one feature map, got none")
    sums = lookup.statistics.sums
    size, dim = sums.shape
    names = ("weight", "cluster_size", "idle", "embed_sum")
    given: Sequence[Any] = state
    for name, tensor, shape in zip(names, given, ((size + 1, dim), (size,), (size,), (size, dim)), strict=True):
        if tensor is None and name == "embed_sum":
            continue
        check_tensor(name, tensor, dtypes=(torch.int64,) if name == "idle" else (torch.float32,))
        if tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise InputError(f"{name}: expected {shape}, contiguous, got {tuple(tensor.shape)}")
    check_tensor("grain", grain, dim=3, dtypes=(torch.int64,))
    check_tensor("maps[-1]", maps[-1], dim=4, dtypes=(torch.float16, torch.bfloat16, torch.float32))
    check_same_device(weight=state[0], sums=sums, codes=lookup.codes)


def _check_settings(lookup: Lookup, keys: Tensor | None, decay: float, eps: float, threshold: float | None) -> None:
    if keys is not None and (keys.dtype is not torch.int64 or keys.shape != lookup.codes.shape):
        expected, got = f"{tuple(lookup.codes.shape)} int64", f"{tuple(keys.shape)} {keys.dtype}"
        raise InputError(f"keys: expected {expected}, as the codes, got {got}")
    if not 0 <= decay <= 1:  # NaN is none of these
        raise InputError(f"decay: expected a number in [0, 1], got {decay}")
    for name, number in (("eps", eps), ("threshold", threshold)):
        if number is not None and not 0 <= number < math.inf:
            raise InputError(f"{name}: expected a number from 0 up, got {number}")


def _triton(*args: Any) -> None:
    from dqcore.kernels.codebook_update import codebook_update_fwd

    update = Update(*args)
    state = (update.weight, update.cluster_size, update.idle, update.embed_sum)
    statistics = CodeSums(update.counts, update.sums)
    # Grain map, codes and keys may be one tensor, which a launcher takes only once.
    regions = update.grain if len(update.maps) > 1 else None
    places = update.codes if update.keys is None else None
    setting = (update.decay, update.eps, update.threshold)
    codebook_update_fwd(state, statistics, update.maps, regions, places, update.error, setting, update.keys)


_op = register(
    "codebook_update",
    codebook_update_reference,
    fake=lambda *_: None,
    gpu=Implementation(_triton, "triton"),
    mutates_args=("weight", "cluster_size", "idle", "embed_sum"),
)
