"""Multi-granularity lookup: only the codes that exist are searched, each vector read once from its own map.

The first launch lists the vectors of all granularities, neighbours beside each other, so that lanes read whole sectors.
While ``nearest_code`` rounds them it also stores planes as packed rows, one a vector, which all that follows reads;
channels-last maps hold such rows already. The search leaves each code at the first cell of its block. Then one program
a run of cells of the finest grid writes code map, quantized map and error, every cell once, in the memory format of the
finest map. Reference: ``dqcore.ops.dynamic_lookup``; the backward pass: ``dynamic_lookup_backward``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.code_sums import vector_sums
from dqcore.kernels.common import cdiv, next_power_of_2, on_device, widen
from dqcore.kernels.launch import launch
from dqcore.kernels.nearest_code import Counters, search
from dqcore.kernels.replay import replayed
from dqcore.kernels.vectors import Vectors, block_of, is_channels_last, row_of, starts, store_planes

FILL = {"BLOCK_N": 64, "BLOCK_D": 32, "num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _write_vectors(
    code, codebook, start, stride, coded, inside, to, area,
    D: tl.constexpr, ALIGN: tl.constexpr, LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the vectors of codes ``(BLOCK_N,)`` to ``to``; returns the squared distances of what was looked up.

    ``start`` and ``stride`` are those of :func:`starts`; other arguments are those of the kernel below.
    """
    start_e, stride_k, stride_e = codebook
    total = tl.zeros([BLOCK_N], tl.float32)
    for channel in range(0, D, BLOCK_D):
        d = (channel + tl.arange(0, BLOCK_D)).to(tl.int64)
        known = coded[:, None] & (d < D)[None, :]
        from_code = start_e + code[:, None] * stride_k + d[None, :] * stride_e
        value = widen(tl.load(from_code, mask=known, other=0.0))  # (BLOCK_N, BLOCK_D)
        difference = widen(block_of(start, stride, coded, channel, D, BLOCK_D, ALIGN)) - value
        total += tl.sum(difference * difference, 1)
        value = value.to(to.dtype.element_ty)
        if LAST:
            tl.store(to[:, None] + d[None, :], value, mask=inside[:, None] & (d < D)[None, :])  # (BLOCK_N, BLOCK_D)
        else:
            store_planes(to, area, value, inside, d, D)
    return total


@triton.jit(do_not_specialize=["N", "height", "width", "regions"])
def _dynamic_lookup_fill_kernel(
    where, grain, codebook, out, N, height, width, area, regions,
    G: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, LAST: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Spread each code over its block. Cells without a code (granularity out of range, or code -1) get -1 and 0.

    ``keys`` gets each code once, at the first cell of its block, and -1 elsewhere.

    Args:
        where: Maps, their strides, packed rows and their places.
        grain: The grain map.
        codebook: ``(K, D)`` with its strides.
        out: Codes (read and written), quantized map, error, keys or None.
        N: Number of cells.
        height: Of the finest grid.
        width: Of the finest grid.
        area: Cells of one image.
        regions: Number of regions.
        G: Number of granularities.
        D: Number of channels.
        ALIGN: As of :func:`starts`.
        LAST: Whether the quantized map is channels-last.
        WHOLE: Whether all cells of a program belong to one image.
        BLOCK_N: Cells of a program.
        BLOCK_D: Channels that it writes at once.
    """
    maps, strides, rows, places = where
    codes, quantized, error, keys = out
    begin = tl.program_id(0).to(tl.int64) * BLOCK_N
    cell = begin + tl.arange(0, BLOCK_N)
    inside = cell < N
    line, column = cell // width, cell % width
    image, row = line // height, line % height
    region = (line >> (G - 1)) * (width >> (G - 1)) + (column >> (G - 1))
    granularity = tl.load(grain + region, mask=inside, other=-1).to(tl.int32)  # (BLOCK_N,)
    coded = (granularity >= 0) & (granularity < G)
    halvings = tl.where(coded, G - 1 - granularity, 0)  # the block is 2^halvings cells wide
    first = (line >> halvings << halvings) * width + (column >> halvings << halvings)
    code = tl.load(codes + first, mask=coded, other=-1)  # (BLOCK_N,)
    index = first
    if rows is not None:
        index = row_of(places, regions, region, line, column, halvings, coded, G)
    coded &= code >= 0
    start, stride = starts(maps, strides, rows, index, granularity, image, row, column, G, D, ALIGN)
    if LAST:
        to = quantized + cell * D
    elif WHOLE:  # so the compiler sees that cells lie side by side
        to = quantized + (begin // area * D * area + begin % area) + tl.arange(0, BLOCK_N)
    else:
        to = quantized + image * D * area + (row * width + column)
    distance = _write_vectors(code, codebook, start, stride, coded, inside, to, area, D, ALIGN, LAST, BLOCK_N, BLOCK_D)
    share = tl.full([BLOCK_N], 1, tl.int32) << (2 * halvings)
    tl.store(error + cell, distance / share.to(tl.float32), mask=inside)  # (BLOCK_N,), as are the next two
    tl.store(codes + cell, code, mask=inside)
    if keys is not None:
        tl.store(keys + cell, tl.where(cell == first, code, -1).to(tl.int32), mask=inside)


@replayed
def dynamic_lookup_fwd(
    maps: list[Tensor], grain: Tensor, codebook: Tensor, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Code map ``(B, H, W)`` int64, quantized map, error ``(B, H, W)`` float32, counts ``(K,)``, sums ``(K, D)``.

    A granularity out of range, as -1, marks a region without a code. Without ``with_sums`` the last two are empty.
    """
    finest, size = maps[-1], codebook.shape[0]
    images, dim, height, width = finest.shape
    codes = torch.empty(images, height, width, dtype=torch.int64, device=finest.device)
    last = is_channels_last(finest)
    memory = torch.channels_last if last else torch.contiguous_format
    quantized = torch.empty(finest.shape, dtype=finest.dtype, device=finest.device, memory_format=memory)
    error = torch.empty(images, height, width, dtype=torch.float32, device=finest.device)
    if codes.numel() == 0 or not with_sums:
        counts, sums = error.new_zeros(size if with_sums else 0), error.new_zeros((size, dim) if with_sums else 0)
    if codes.numel() == 0:
        return codes, quantized, error, counts, sums
    grain = grain.contiguous()
    with on_device(finest):
        counters = Counters.zeros(finest.device)
        batch = Vectors.listed(maps, grain, counters.listed)
        keys = torch.empty(codes.numel(), dtype=torch.int32, device=finest.device) if with_sums else None
        search(batch, codebook, "exact", codes, counters)
        launch(_dynamic_lookup_fill_kernel, (cdiv(codes.numel(), FILL["BLOCK_N"]),))(
            *((batch.maps, batch.strides, batch.rows, batch.places), grain, (codebook, *codebook.stride())),
            *((codes, quantized, error, keys), codes.numel(), height, width, height * width, grain.numel()),
            G=len(maps),
            D=dim,
            ALIGN=batch.packed,
            LAST=last,
            WHOLE=height * width % FILL["BLOCK_N"] == 0,
            **FILL | {"BLOCK_D": min(FILL["BLOCK_D"], next_power_of_2(dim))},
        )
        if keys is not None:
            counts, sums = vector_sums(batch, grain, keys, size, counters.arrived)
    return codes, quantized, error, counts, sums
