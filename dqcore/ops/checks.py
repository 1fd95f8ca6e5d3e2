"""Argument checks that several ops share: an error names the argument, what was expected and what came instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dqcore.backends import exporting, host_knows
from dqcore.errors import InputError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(
    name: str, tensor: Tensor, *, dim: int | tuple[int, ...] | None = None, dtypes: Sequence[torch.dtype] = FLOATS
) -> None:
    """Raise unless ``tensor`` is a tensor with one of these numbers of dimensions and one of these dtypes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    dims = (dim,) if isinstance(dim, int) else dim
    if dims is not None and tensor.dim() not in dims:
        raise InputError(f"{name}: expected {' or '.join(map(str, dims))} dimensions, got shape {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: expected {names}, got {str(tensor.dtype).removeprefix('torch.')}")


def check_same_device(**tensors: Tensor) -> None:
    """Raise unless all these tensors are on one device."""
    first, *others = tensors.values()
    device = first.device
    if any(tensor.device != device for tensor in others):
        raise InputError(
            "expected one device, got " + ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        )


def check_codebook(codebook: Tensor, dim: int) -> None:
    """Raise unless ``codebook`` is a floating ``(K, dim)`` matrix with K >= 1."""
    check_tensor("codebook", codebook, dim=2)
    if codebook.shape[0] == 0:
        raise InputError("codebook: expected at least one code, got an empty codebook")
    if codebook.shape[1] != dim:
        raise InputError(f"codebook: expected {dim} channels, as the vectors have, got shape {tuple(codebook.shape)}")


def check_cells(regions: int, num_granularities: int) -> None:
    """Raise unless the kernels can number the cells of the finest grid in 32 bits."""
    if reaches(regions * 4 ** (num_granularities - 1), 2**31):
        raise InputError("grain: expected fewer than 2**31 cells on the finest grid")


def reaches(size: int, limit: int) -> bool:
    """Whether a size is ``limit`` or more.

    A size that an export leaves open is taken to be below: compared, it would bind the program's dimensions to a bound
    that the user did not give, and ``torch.export`` refuses a dimension without one.
    """
    return not (exporting() and isinstance(size, torch.SymInt)) and size >= limit


def check_grain(grain: Tensor, num_granularities: int) -> None:
    """Raise unless ``grain`` is a ``(B, h, w)`` int64 map with values in ``[0, num_granularities)``.

    The values are checked on the CPU only: on a GPU the host would have to wait for them.
    """
    check_tensor("grain", grain, dim=3, dtypes=(torch.int64,))
    if not host_knows(grain) or grain.numel() == 0:
        return
    low, high = int(grain.min()), int(grain.max())
    if low < 0 or high >= num_granularities:
        raise InputError(f"grain: expected values in [0, {num_granularities}), got values in [{low}, {high}]")
