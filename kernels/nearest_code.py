"""Exact nearest code: one half-precision product proves most of its answers, float64 settles the rest.

1. ``rounding`` turns codes e_k and vectors x into float16 (half precision stays as it is), and derives a margin for
   each vector: no two of its scores can be wrong by more than that against each other.
2. ``scan`` computes all scores on tensor cores, keeps the two smallest of each stretch of codes, and settles a vector if
   the margin leaves only one code.
3. ``settle`` compares the others' candidates in float64, in the order of ``dqcore.ops.nearest_code.squared_distance``.

Everything stays on the device and every launch has a size known to the host. What the scan leaves open changes the time
taken, never the result. With "fast" its smallest score is the answer. The proof assumes how tensor cores add,
``rounding.ACCUMULATION``. Reference: ``dqcore.ops.nearest_code``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dqcore.kernels import common, tuned
from dqcore.kernels.common import on_device, processors
from dqcore.kernels.rounding import ACCUMULATION, Codes, round_codes, round_vectors
from dqcore.kernels.scan import _certify_kernel, _rescan_kernel, _scan_kernel
from dqcore.kernels.settle import LIST, _settle_kernel, tree_tile
from dqcore.kernels.tokens import Tokens

WORKSPACE = 2**25  # bytes of rounded vectors and what is known of them; a longer batch is searched in parts
STRETCH = 2048  # codes that one program scans at most, so that two codes within the margin are rarely in one stretch
MOST_STRETCHES = 32
ROWS = 128  # vectors that one program certifies
CANDIDATES = [
    {"BLOCK_N": n, "BLOCK_K": k, "BLOCK_D": d, "num_warps": warps, "num_stages": stages}
    for n, k in ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 64))
    for d in (64, 128, 256, 512)
    for warps in (4, 8)
    for stages in (1, 2, 3, 4)
]
RESCAN = {"BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}

class Workspace(NamedTuple):
    """What one part of a batch is searched with, ``room`` vectors and ``splits`` stretches of the codes."""

    best: Tensor  # (splits, room) float32
    second: Tensor  # (splits, room) float32
    codes: Tensor  # (splits, room) int32
    pending: Tensor  # (room,) int32
    limits: Tensor  # (room,) float32
    candidates: Tensor  # (room, LIST) int32
    found: Tensor  # (room,) int32
    rescans: Tensor  # (splits, room) int32
    numbers: Tensor  # (splits + 1,) int32: how many to search again in each stretch, and pending; 0 to begin with

    @classmethod
    def allocate(cls, room: int, splits: int, device: torch.device) -> Workspace:
        """Uninitialised but for the numbers."""
        floats = torch.empty(2 * splits + 1, room, dtype=torch.float32, device=device)
        words = torch.empty(2 * splits + 2, room, dtype=torch.int32, device=device)
        candidates = torch.empty(room, LIST, dtype=torch.int32, device=device)
        numbers = torch.zeros(splits + 1, dtype=torch.int32, device=device)
        best, second = floats[:splits], floats[splits:-1]
        codes, rescans = words[:splits], words[splits:-2]
        return cls(best, second, codes, words[-2], floats[-1], candidates, words[-1], rescans, numbers)


def search(tokens: Tokens, codebook: Tensor, precision: str, codes: Tensor) -> None:
    """Write the nearest code of each token to its first cell of ``codes``, int64, the finest grid row by row."""
    given = (tokens.maps[-1].dtype, codebook.dtype)
    prepared = round_codes(codebook, exact=given in [(half, half) for half in (torch.float16, torch.bfloat16)])
    room = rows_at_once(tokens.most, prepared)
    for first in range(0, tokens.most, room):
        _search_part(tokens, codebook, prepared, precision, codes, first, min(room, tokens.most - first))


def rows_at_once(most: int, prepared: Codes) -> int:
    """How many vectors fit the workspace, of ``most``."""
    row = prepared.values.shape[1] * prepared.values.element_size() + 16 * _stretches(most, prepared)[0]
    return min(most, max(1024, WORKSPACE // (row + 4 * LIST + 20) // 1024 * 1024))


def _stretches(most: int, prepared: Codes) -> tuple[int, int]:
    """Into how many stretches the codes are split, and their length: more for few vectors, so that they fill the GPU."""
    size, width = prepared.values.shape
    config = tuned.config("nearest_code", width=width)
    blocks = size // config["BLOCK_K"]
    rows = triton.cdiv(most, config["BLOCK_N"])
    wanted = max(triton.cdiv(blocks, STRETCH // config["BLOCK_K"]), triton.cdiv(2 * processors(), rows))
    span = triton.cdiv(blocks, min(wanted, blocks, MOST_STRETCHES)) * config["BLOCK_K"]
    return triton.cdiv(size, span), span


def _search_part(
    tokens: Tokens, codebook: Tensor, prepared: Codes, precision: str, codes: Tensor, first: int, room: int
) -> None:
    dim, config = codebook.shape[1], tuned.config("nearest_code", width=prepared.values.shape[1])
    splits, span = _stretches(tokens.most, prepared)
    vectors, scales, margins = round_vectors(tokens, prepared, first, room, dim)
    work = Workspace.allocate(room, splits, codes.device)
    config["BLOCK_D"] = min(config["BLOCK_D"], vectors.shape[1])
    shared = {"W": vectors.shape[1], "UPCAST": common.INTERPRETED, "INTERPRETED": common.INTERPRETED}
    columns = torch.arange(config["BLOCK_K"], dtype=torch.int32, device=codes.device)
    exact = precision == "exact"
    rows = triton.cdiv(room, config["BLOCK_N"])
    _scan_kernel[(rows, splits)](
        *(vectors, scales, prepared.values, prepared.squares, columns, tokens.count, work.best, work.second, work.codes),
        *(first, first + room, room, prepared.values.shape[0], span),
        **shared,
        **config,
        enable_fp_fusion=True,
    )
    height, width = tokens.maps[-1].shape[2:]
    _certify_kernel[(triton.cdiv(room, ROWS),)](
        *(work.best, work.second, work.codes, margins, tokens.cells, tokens.count, codes, work.pending),
        *(work.limits, work.candidates, work.found, work.rescans, work.numbers),
        *(first, first + room, room, height, width),
        SPLITS=splits,
        PACK=1.02 * (config["BLOCK_K"] + 1) * 2.0**-23 if exact else None,
        LIST=LIST,
        BLOCK_N=ROWS,
        num_warps=4,
    )
    if not exact:
        return
    _rescan_kernel[(min(triton.cdiv(room, RESCAN["BLOCK_N"]), 2 * processors()), splits)](
        *(vectors, scales, prepared.values, prepared.squares, work.limits, work.rescans, work.numbers),
        *(work.candidates, work.found, room, prepared.values.shape[0], span),
        LIST=LIST,
        **shared,
        BLOCK_D=min(128, vectors.shape[1]),
        **RESCAN,
        enable_fp_fusion=True,
    )
    _settle_kernel[(min(room, 8 * processors()),)](
        *(tokens.maps, tokens.strides, tokens.cells, codebook, codes, work.pending, work.numbers, work.candidates),
        *(work.found, first, codebook.shape[0], height, width, *codebook.stride()),
        G=len(tokens.maps),
        D=dim,
        LIST=LIST,
        SPLITS=splits,
        INTERPRETED=common.INTERPRETED,
        **tree_tile(dim),
        num_warps=4,
        enable_fp_fusion=False,
    )


def nearest_code_fwd(x: Tensor, codebook: Tensor, precision: str) -> Tensor:
    """``x (N, D)`` or ``(B, D, H, W)``, ``codebook (K, D)`` -> ``(N,)`` or ``(B, H, W)`` int64."""
    shape = x.shape[:1] if x.dim() == 2 else (x.shape[0], *x.shape[2:])
    codes = torch.empty(shape, dtype=torch.int64, device=x.device)
    if codes.numel() > 0:
        with on_device(x):
            search(Tokens.of(x), codebook, precision, codes)
    return codes
