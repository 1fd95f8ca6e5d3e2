"""Multi-granularity lookup: only the codes that exist are searched, each vector read where it lies in its own map.

One launch lists the tokens of all granularities, and ``nearest_code`` searches the list at once, leaving each code at
the first cell of its block. Then one program a run of cells of the finest grid writes code map, quantized map and
error, every cell once. The backward pass is one launch a granularity, one program a tile of cells and channels, each
written once and so always the same. Tiles are (channels, cells), since cells lie side by side in memory. Reference:
``dqcore.ops.dynamic_lookup``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.code_sums import token_sums
from dqcore.kernels.common import on_device
from dqcore.kernels.nearest_code import search
from dqcore.kernels.tokens import Tokens, list_tokens, starts

TILE = {"BLOCK_N": 32, "BLOCK_D": 16, "num_warps": 4, "enable_fp_fusion": True}
FILL = {"BLOCK_N": 64, "BLOCK_D": 16, "num_warps": 4, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["N", "height", "width"])
def _fill_kernel(
    maps, strides, grain, codebook, codes, quantized, error, keys, N, height, width, stride_k, stride_e,
    G: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Spread each code over its block; a region without one (its granularity out of range) gets -1 and 0.

    ``keys`` gets each code once, at the first cell of its block, and -1 elsewhere.
    """
    cell = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = cell < N
    line, column = cell // width, cell % width
    image, row = line // height, line % height
    region = (line >> (G - 1)) * (width >> (G - 1)) + (column >> (G - 1))
    own = tl.load(grain + region, mask=inside, other=-1).to(tl.int32)
    coded = (own >= 0) & (own < G)
    level = tl.where(coded, G - 1 - own, 0)  # the block is 2^level cells wide
    first = (line >> level << level) * width + (column >> level << level)
    code = tl.load(codes + first, mask=coded, other=-1)
    start, stride = starts(maps, strides, own, image, row, column, G)
    area = height.to(tl.int64) * width
    total = tl.zeros([BLOCK_N], tl.float32)
    for channel in range(0, D, BLOCK_D):
        d = (channel + tl.arange(0, BLOCK_D)).to(tl.int64)
        known = coded[:, None] & (d < D)[None, :]
        value = tl.load(codebook + code[:, None] * stride_k + d[None, :] * stride_e, mask=known, other=0.0)
        value = tl.trans(value).to(tl.float32)  # read along channels, written along cells
        where = (d < D)[:, None] & inside[None, :]
        vector = tl.load(start[None, :] + d[:, None] * stride[None, :], mask=where & coded[None, :], other=0.0)
        difference = vector.to(tl.float32) - value
        total += tl.sum(difference * difference, 0)
        out = quantized + (image[None, :] * D + d[:, None]) * area + (row * width + column)[None, :]
        tl.store(out, value.to(quantized.dtype.element_ty), mask=where)
    share = tl.full([BLOCK_N], 1, tl.int32) << (2 * level)
    tl.store(error + cell, total / share.to(tl.float32), mask=inside)
    tl.store(codes + cell, code, mask=inside)
    if keys is not None:
        tl.store(keys + cell, tl.where(cell == first, code, -1).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["N", "height", "width"])
def _lookup_backward_kernel(
    x,
    grain,
    quantized,
    grad_quantized,
    grad_error,
    grad,
    N,
    D,
    height,
    width,
    stride_b,
    stride_d,
    stride_h,
    stride_w,
    quantized_b,
    quantized_d,
    quantized_h,
    quantized_w,
    grad_b,
    grad_d,
    grad_h,
    grad_w,
    error_b,
    error_h,
    error_w,
    out_b,
    out_d,
    out_h,
    out_w,
    GRANULARITY: tl.constexpr,
    SPREAD: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    line, column = token // width, token % width
    image, row = line // height, line % height
    region = (image * (height // SIDE) + row // SIDE) * (width // SIDE) + column // SIDE
    mine = (token < N) & (tl.load(grain + region, mask=token < N, other=-1) == GRANULARITY)
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    where = (d < D)[:, None] & mine[None, :]
    total = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    if grad_quantized is not None:
        first = grad_quantized + image * grad_b + row * SPREAD * grad_h + column * SPREAD * grad_w
        for i in range(SPREAD):  # unrolled, its addresses would not fit the registers
            for j in tl.static_range(SPREAD):
                start = first + i * grad_h + j * grad_w
                total += tl.load(start[None, :] + d[:, None] * grad_d, mask=where, other=0.0).to(tl.float32)
    if grad_error is not None:
        scale = tl.zeros([BLOCK_N], tl.float32)
        first = grad_error + image * error_b + row * SPREAD * error_h + column * SPREAD * error_w
        for i in tl.static_range(SPREAD * SPREAD):
            scale += tl.load(first + (i // SPREAD) * error_h + (i % SPREAD) * error_w, mask=mine, other=0.0).to(
                tl.float32
            )
        start = x + image * stride_b + row * stride_h + column * stride_w
        vector = tl.load(start[None, :] + d[:, None] * stride_d, mask=where, other=0.0).to(tl.float32)
        start = quantized + image * quantized_b + row * SPREAD * quantized_h + column * SPREAD * quantized_w
        value = tl.load(start[None, :] + d[:, None] * quantized_d, mask=where, other=0.0).to(tl.float32)
        total += (vector - value) * (scale * (2 / (SPREAD * SPREAD)))[None, :]
    out = grad + image * out_b + row * out_h + column * out_w
    everywhere = (d < D)[:, None] & (token < N)[None, :]
    tl.store(out[None, :] + d[:, None] * out_d, total.to(grad.dtype.element_ty), mask=everywhere)


def dynamic_lookup_fwd(
    maps: list[Tensor], grain: Tensor, codebook: Tensor, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Code map ``(B, H, W)`` int64, quantized map, error ``(B, H, W)`` float32, counts ``(K,)``, sums ``(K, D)``.

    A granularity out of range, as -1, marks a region without a code. Without ``with_sums`` the last two are empty.
    """
    finest, size = maps[-1], codebook.shape[0]
    batch, dim, height, width = finest.shape
    codes = torch.empty(batch, height, width, dtype=torch.int64, device=finest.device)
    quantized = torch.empty(finest.shape, dtype=finest.dtype, device=finest.device)
    error = torch.empty(batch, height, width, dtype=torch.float32, device=finest.device)
    counts, sums = error.new_zeros(size if with_sums else 0), error.new_zeros((size, dim) if with_sums else 0)
    if codes.numel() == 0:
        return codes, quantized, error, counts, sums
    grain = grain.contiguous()
    with on_device(finest):
        tokens = Tokens(tuple(maps), *list_tokens(grain, len(maps)))
        keys = torch.empty(codes.numel(), dtype=torch.int32, device=finest.device) if with_sums else None
        search(tokens, codebook, "exact", codes)
        _fill_kernel[(triton.cdiv(codes.numel(), FILL["BLOCK_N"]),)](
            *(tokens.maps, tokens.strides, grain, codebook, codes, quantized, error, keys),
            *(codes.numel(), height, width, *codebook.stride()),
            G=len(maps),
            D=dim,
            **FILL,
        )
        if keys is not None:
            counts, sums = token_sums(tokens, grain, keys, size)
    return codes, quantized, error, counts, sums


def dynamic_lookup_bwd(
    maps: list[Tensor], grain: Tensor, quantized: Tensor, grad_quantized: Tensor | None, grad_error: Tensor | None
) -> list[Tensor]:
    """The gradient of each map; ``quantized`` is the forward's, either gradient may be None."""
    grain = grain.contiguous()
    grads = [torch.empty_like(x) for x in maps]
    for g, (x, grad) in enumerate(zip(maps, grads, strict=True)):
        batch, dim, height, width = x.shape
        tokens = batch * height * width
        if grad.numel() == 0:
            continue
        with on_device(x):
            _lookup_backward_kernel[(triton.cdiv(tokens, TILE["BLOCK_N"]), triton.cdiv(dim, TILE["BLOCK_D"]))](
                *(x, grain, quantized, grad_quantized, grad_error, grad),
                *(tokens, dim, height, width),
                *(*x.stride(), *quantized.stride()),
                *((0,) * 4 if grad_quantized is None else grad_quantized.stride()),
                *((0,) * 3 if grad_error is None else grad_error.stride()),
                *grad.stride(),
                GRANULARITY=g,
                SPREAD=quantized.shape[3] // width,
                SIDE=2**g,
                **TILE,
            )
    return grads
