"""``dynamic_lookup``: the nearest codes of every region at its own granularity (paper, section 3.2).

A region of granularity g has ``4**g`` vectors, in the map of that granularity; each is looked up once, and its code
fills ``4**(G - 1 - g)`` cells of the finest grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.ops.checks import check_cells, check_codebook, check_grain, check_same_device, check_tensor
from dqcore.ops.code_sums import CodeSums
from dqcore.ops.cpu.dynamic_lookup import dynamic_lookup_cpu
from dqcore.ops.layout import cells_per_code, memory_format, merge_maps
from dqcore.ops.reference.dynamic_lookup import dynamic_lookup_backward_reference, dynamic_lookup_reference
from dqcore.ops.registry import Implementation, is_traced, register

__all__ = ["MAX_GRANULARITIES", "Lookup", "dynamic_lookup"]

#: Kernels pack a vector's granularity into three bits beside its cell.
MAX_GRANULARITIES = 8


class Lookup(NamedTuple):
    """What :func:`dynamic_lookup` returns. Maps are on the finest grid."""

    codes: Tensor  # (B, H, W) int64
    quantized: Tensor  # (B, D, H, W), dtype and memory format of the finest map
    error: Tensor  # (B, H, W) float32
    statistics: CodeSums | None  # counts (K,) and sums (K, D), each code once


def dynamic_lookup(
    maps: Sequence[Tensor], grain: Tensor, codebook: Tensor, *, mask: Tensor | None = None, with_sums: bool = False
) -> Lookup:
    """Nearest code of every vector that the grain map selects, ``argmin_k ||z_i - e_k||^2``.

    Args:
        maps: 1 to 8 feature maps, coarse to fine, map g ``(B, D, h * 2**g, w * 2**g)``; all float16, bfloat16, float32
            or float64; any strides.
        grain: Granularity of each region, ``(B, h, w)`` int64 in ``[0, len(maps))``.
        codebook: ``(K, D)``, floating point.
        mask: ``(B, h, w)`` bool; regions that are False have no code: code -1, vector 0, error 0. Neither has a vector
            with a NaN or an infinity; see :func:`dqcore.ops.nearest_code`.
        with_sums: Also return the counts and vector sums of the codes (no gradient).

    Returns:
        ``codes``; ``quantized``, the codes' vectors; ``error``, the squared distance of each code divided by the number
        of cells it fills, so that its sum counts each code once; ``statistics``, or None. An error beyond the range of
        float32 is infinite.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes or devices do not fit, or on the CPU a granularity is out of range.

    Gradient: of ``quantized`` straight through to the maps; of ``error`` to maps and codebook; 0, never NaN, where
        there is no code. Deterministic.
    Ties: the lowest code; exact as :func:`dqcore.ops.nearest_code`, on every backend.
    Cost: looks up only codes that exist (0.63 of the finest grid at dual ratio 0.5), each read once from its map.
        Beside its results under 64 MB and, on a GPU if the maps are not channels-last, as much as the finest map.
    """
    _check(maps, grain, codebook, mask)
    return _look_up(maps, grain, codebook, mask, with_sums)


def lookup_of_checked(
    maps: Sequence[Tensor], grain: Tensor, codebook: Tensor, mask: Tensor | None, with_sums: bool
) -> Lookup:
    """:func:`dynamic_lookup` where the caller has checked all but the number of maps and the grain map's values."""
    check_granularities(maps, grain)
    return _look_up(maps, grain, codebook, mask, with_sums)


def _look_up(maps: Sequence[Tensor], grain: Tensor, codebook: Tensor, mask: Tensor | None, with_sums: bool) -> Lookup:
    if mask is not None:
        grain = torch.where(mask, grain, -1)
    eager = not is_traced()
    if eager and torch.is_grad_enabled():
        codes, quantized, error, counts, sums = _EagerLookup.apply(with_sums, grain, codebook, *maps)
    elif eager:
        codes, quantized, error, counts, sums = _op.below_autograd(list(maps), grain, codebook, with_sums)
    else:
        codes, quantized, error, counts, sums = torch.ops.dqcore.dynamic_lookup(list(maps), grain, codebook, with_sums)
    return Lookup(codes, quantized, error, CodeSums(counts, sums) if with_sums else None)


def check_granularities(maps: Sequence[Tensor], grain: Tensor) -> None:
    """Raise unless the kernels can pack so many granularities and cells, and the grain map names no others."""
    if len(maps) > MAX_GRANULARITIES:
        raise InputError(f"maps: expected at most {MAX_GRANULARITIES} feature maps, one a granularity, got {len(maps)}")
    check_grain(grain, len(maps))
    check_cells(grain.numel(), len(maps))


def _check(maps: Sequence[Tensor], grain: Tensor, codebook: Tensor, mask: Tensor | None) -> None:
    if not isinstance(maps, (list, tuple)) or not maps:
        raise TypeError("maps: expected a non-empty list of feature maps, coarse to fine")
    check_granularities(maps, grain)
    (batch, height, width), device = grain.shape, grain.device
    for g, values in enumerate(maps):
        check_tensor(f"maps[{g}]", values, dim=4)
        expected = (batch, maps[0].shape[1], height * 2**g, width * 2**g)
        if values.shape != expected:
            given = f"grain {tuple(grain.shape)}, got {tuple(values.shape)}"
            raise InputError(f"maps[{g}]: expected shape {expected} for {given}")
        if values.dtype != maps[0].dtype:
            raise TypeError(f"maps[{g}]: expected {maps[0].dtype} as maps[0], got {values.dtype}")
        if values.device != device:
            check_same_device(**{f"maps[{g}]": values, "grain": grain})
    check_codebook(codebook, maps[0].shape[1])
    check_same_device(grain=grain, codebook=codebook)
    if mask is not None:
        check_tensor("mask", mask, dim=3, dtypes=(torch.bool,))
        if mask.shape != grain.shape:
            raise InputError(f"mask: expected shape {tuple(grain.shape)}, as grain, got {tuple(mask.shape)}")


def _fake(
    maps: list[Tensor], grain: Tensor, codebook: Tensor, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    finest = maps[-1]
    wide = torch.promote_types(finest.dtype, torch.float32)
    grid = (finest.shape[0], *finest.shape[2:])
    counts, sums = (codebook.shape[:1], codebook.shape) if with_sums else ((0,), (0,))
    return (
        finest.new_empty(grid, dtype=torch.int64),
        torch.empty(finest.shape, dtype=finest.dtype, device=finest.device, memory_format=memory_format(finest)),
        finest.new_empty(grid, dtype=wide),
        finest.new_empty(counts, dtype=wide),
        finest.new_empty(sums, dtype=wide),
    )


def _triton(maps: list[Tensor], grain: Tensor, codebook: Tensor, with_sums: bool) -> tuple[Tensor, ...]:
    from dqcore.kernels.codes import fits
    from dqcore.kernels.dynamic_lookup import dynamic_lookup_fwd

    run = dynamic_lookup_fwd if fits(*codebook.shape) else dynamic_lookup_reference
    return run(maps, grain, codebook, with_sums)


def _triton_backward(
    maps: list[Tensor],
    grain: Tensor,
    codes: Tensor,
    quantized: Tensor,
    grad_quantized: Tensor | None,
    grad_error: Tensor | None,
) -> list[Tensor]:
    from dqcore.kernels.dynamic_lookup_backward import dynamic_lookup_bwd, fits

    run = dynamic_lookup_bwd if fits(maps[-1], quantized, grad_quantized) else dynamic_lookup_backward_reference
    return run(maps, grain, codes, quantized, grad_quantized, grad_error)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    maps, grain, codebook, _ = inputs
    codes, quantized, _, counts, sums = output
    ctx.mark_non_differentiable(codes, counts, sums)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*maps, grain, quantized, codes)
    ctx.num_codes, ctx.codebook_dtype = codebook.shape[0], codebook.dtype


def gradients_of_maps(
    maps: list[Tensor],
    grain: Tensor,
    codes: Tensor,
    quantized: Tensor,
    grad_quantized: Tensor | None,
    grad_error: Tensor | None,
) -> list[Tensor | None]:
    """The gradient of each map from those of ``quantized`` and ``error``, either of which may be None."""
    if grad_quantized is None and grad_error is None:
        return [None] * len(maps)
    quantized = quantized.detach()  # the codes' vectors are constants here, whatever the result passes on
    backward: Any = torch.ops.dqcore.dynamic_lookup_backward if is_traced() else _backward_op.below_autograd
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # for a second derivative, which the op has not
        backward = dynamic_lookup_backward_reference
    grads: list[Tensor | None] = backward(maps, grain, codes, quantized, grad_quantized, grad_error)
    return grads


def _backward(
    ctx: Any, _: None, grad_quantized: Tensor | None, grad_error: Tensor | None, *__: None
) -> tuple[list[Tensor | None], None, Tensor | None, None]:
    *maps, grain, quantized, codes = ctx.saved_tensors
    grads = gradients_of_maps(maps, grain, codes, quantized, grad_quantized, grad_error)
    grad_codebook = None
    if ctx.needs_input_grad[2] and grad_error is not None:
        weight = 2 * grad_error / cells_per_code(grain, len(maps)).clamp_min(1)
        pull = (quantized.detach() - merge_maps(maps, grain)).to(weight.dtype) * weight[:, None]
        vectors = pull.permute(0, 2, 3, 1).flatten(0, 2)
        _, sums = torch.ops.dqcore.code_sums(vectors, codes.flatten(), ctx.num_codes)
        grad_codebook = sums.to(ctx.codebook_dtype)
    return grads, None, grad_codebook, None


class _EagerLookup(torch.autograd.Function):
    """The op with its gradient, in half of the host's time that ``torch.library``'s autograd takes."""

    @staticmethod
    def forward(ctx: Any, with_sums: bool, grain: Tensor, codebook: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        found = _op.below_autograd(list(maps), grain, codebook, with_sums)
        _setup_context(ctx, (maps, grain, codebook, with_sums), found)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad_maps, _, grad_codebook, _ = _backward(ctx, *grads)
        return None, None, grad_codebook, *grad_maps  # _backward asks whether input 2 needs a gradient: the codebook


_op = register(
    "dynamic_lookup",
    dynamic_lookup_reference,
    fake=_fake,
    cpu=Implementation(dynamic_lookup_cpu, "torch"),
    gpu=Implementation(_triton, "triton"),
)
_op.register_autograd(_backward, setup_context=_setup_context)

_backward_op = register(
    "dynamic_lookup_backward",
    dynamic_lookup_backward_reference,
    fake=lambda maps, *_: [torch.empty_like(values) for values in maps],
    gpu=Implementation(_triton_backward, "triton"),
)
