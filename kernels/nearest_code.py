"""Exact nearest code: one half-precision product proves most of its answers, float64 settles the rest.

1. ``codes`` and ``rounding`` turn codes e_k and vectors x into float16 (half precision stays as it is), and derive a
   margin for each vector: its scores are wrong against each other by no more than that.
2. ``scan`` computes all scores on tensor cores and keeps the two smallest of each stretch of codes. A vector is settled
   if the margin leaves only one code. Stretches where it leaves several are scanned again, and candidates are noted.
3. ``settle`` compares the candidates of the other vectors in float64, as
   ``dqcore.ops.nearest_code.squared_distance`` defines it.

Everything stays on the device, and the host knows the size of every launch. How much the scan leaves open changes the
time taken, never the result. With "fast" the smallest score decides. That the answer is exact rests on how tensor cores
add, ``rounding.ACCUMULATION``; ``docs/exactness.md`` has the proof. Reference: ``dqcore.ops.nearest_code``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.kernels import tuned
from dqcore.kernels.codes import Codes
from dqcore.kernels.common import architecture, cdiv, on_device, processors
from dqcore.kernels.launch import launch
from dqcore.kernels.replay import refuse
from dqcore.kernels.rounding import error_of, round_vectors
from dqcore.kernels.scan import _nearest_code_certify_kernel, _nearest_code_rescan_kernel, _nearest_code_scan_kernel
from dqcore.kernels.settle import LIST, _nearest_code_settle_kernel, tree_tile
from dqcore.kernels.survey import survey
from dqcore.kernels.vectors import Vectors

WORKSPACE = 2**25  # bytes for the vectors of one part: a batch that needs more is searched in parts
MOST_NOTED = 4  # parts of a call that may be made again
STRETCH = 1024  # codes that one program scans at most, so that two codes within the margin are rarely in one stretch
MOST_STRETCHES = 32
PART = 128  # codes that one program scans again, so that few vectors still fill the GPU
ROWS = 128  # vectors that one program certifies
CANDIDATES = [
    {"BLOCK_N": n, "BLOCK_K": k, "BLOCK_D": d, "num_warps": warps, "num_stages": stages}
    for n, k in ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 64))
    for d in (64, 128, 256, 512)
    for warps in (4, 8)
    for stages in (1, 2, 3, 4)
]
RESCAN = {"BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}


class Counters(NamedTuple):
    """What begins as zeros in a lookup, cleared in one launch."""

    listed: Tensor  # (1,) int64, how many vectors are listed
    arrived: Tensor  # (1,) int32, for the statistics
    sizes: Tensor  # (5,) float32, of the codes
    numbers: Tensor  # (MOST_STRETCHES + 1,) int32, of the first part's workspace

    @classmethod
    def zeros(cls, device: torch.device) -> Counters:
        """All of them."""
        words = torch.zeros(16 + MOST_STRETCHES + 1, dtype=torch.int32, device=device)
        return cls(words[:2].view(torch.int64), words[2:3], words[4:9].view(torch.float32), words[16:])


class Workspace(NamedTuple):
    """What one part of a batch is searched with: ``room`` vectors, ``splits`` stretches of the codes."""

    best: Tensor  # (splits, room) float32
    second: Tensor  # (splits, room) float32
    nearest: Tensor  # (splits, room) int32
    pending: Tensor  # (room,) int32
    limits: Tensor  # (room,) float32
    candidates: Tensor  # (room, LIST) int32
    found: Tensor  # (room,) int32
    rescans: Tensor  # (splits, room) int32
    numbers: Tensor  # (splits + 1,) int32: how many vectors to scan again in each stretch, and how many are pending

    @classmethod
    def allocate(cls, room: int, splits: int, device: torch.device, numbers: Tensor | None = None) -> Workspace:
        """Uninitialised, except for ``numbers``, which begins as zeros, those given or new ones."""
        floats = torch.empty(2 * splits + 1, room, dtype=torch.float32, device=device)
        words = torch.empty(2 * splits + 2, room, dtype=torch.int32, device=device)
        candidates = torch.empty(room, LIST, dtype=torch.int32, device=device)
        numbers = (
            torch.zeros(splits + 1, dtype=torch.int32, device=device) if numbers is None else numbers[: splits + 1]
        )
        best, second = floats[:splits], floats[splits:-1]
        nearest, rescans = words[:splits], words[splits:-2]
        return cls(best, second, nearest, words[-2], floats[-1], candidates, words[-1], rescans, numbers)

    @property
    def scanned(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the scan writes."""
        return self.best, self.second, self.nearest

    @property
    def lists(self) -> tuple[Tensor, ...]:
        """What the scan leaves open, as the kernels take it."""
        return self.candidates, self.found, self.rescans, self.numbers, self.pending


class Part:
    """Vectors ``first`` to ``first + room`` of a batch on their way to their codes, one method a step."""

    def __init__(
        self, batch: Vectors, codebook: Tensor, prepared: Codes, first: int, room: int, numbers: Tensor | None = None
    ) -> None:
        """Round the vectors, and with the first ones the codes.

        Args:
            batch: All vectors.
            codebook: ``(K, D)``.
            prepared: Where the same is rounded.
            first: The first vector of this part.
            room: How many it has, at most.
            numbers: Zeros for the workspace, if there are some at hand.
        """
        self.batch, self.codebook, self.prepared, self.first, self.room = batch, codebook, prepared, first, room
        splits, self.span = stretches(batch.most, prepared)
        self.rounded = round_vectors(batch, prepared, first, room, codebook)
        self.work = Workspace.allocate(room, splits, codebook.device, numbers)
        self.config = tuned.config("nearest_code", width=prepared.values.shape[1])

    def scan(self) -> None:
        """Find the two smallest scores of each vector in each stretch of the codes."""
        size, width = self.prepared.values.shape
        config = self.config | {"BLOCK_D": min(self.config["BLOCK_D"], width)}
        launch(_nearest_code_scan_kernel, (cdiv(self.room, config["BLOCK_N"]), len(self.work.best)))(
            *(self.rounded[:2], self.prepared[:2], self.batch.number, self.work.scanned),
            *(self.first, self.first + self.room, self.room, size, self.span),
            W=width,
            **config,
            enable_fp_fusion=True,
        )

    def certify(self, codes: Tensor, *, exact: bool) -> None:
        """Write the codes that are certain, and note what is open: if not ``exact``, only vectors without a margin."""
        launch(_nearest_code_certify_kernel, (cdiv(self.room, ROWS),))(
            *(self.work.scanned, tuple(self.rounded), (self.prepared.sizes, self.prepared.largest)),
            *(self.batch.cells, self.batch.number, codes, self.work.limits, self.work.lists),
            *(self.first, self.first + self.room, self.room, *self.batch.maps[-1].shape[2:]),
            ERROR=error_of(self.prepared.values.shape[1]),
            SPLIT=self.prepared.split,
            SPLITS=len(self.work.best),
            PACK=1.02 * (self.config["BLOCK_K"] + 1) * 2.0**-23 if exact else None,
            LIST=LIST,
            BLOCK_N=ROWS,
            num_warps=4,
            maxnreg=64,  # without a limit of ours ptxas may spill to stay within 32
            enable_fp_fusion=True,
        )

    def rescan(self) -> None:
        """Note all candidates in the stretches that have several."""
        (size, width), splits, parts = self.prepared.values.shape, len(self.work.best), cdiv(self.span, PART)
        programs = min(cdiv(self.room, RESCAN["BLOCK_N"]), cdiv(8 * processors(), splits * parts))
        launch(_nearest_code_rescan_kernel, (programs, splits, parts))(
            *(self.rounded[:2], self.prepared[:2], self.work.limits, self.work.lists),
            *(self.room, size, self.span, PART),
            W=width,
            LIST=LIST,
            BLOCK_D=min(128, width),
            **RESCAN,
            # On sm_100 ptxas may spill to fit one more block, unless there is a limit; elsewhere one makes it use more.
            **({"maxnreg": 255} if 100 <= architecture() < 120 else {}),
            enable_fp_fusion=True,
        )

    def settle(self, codes: Tensor) -> None:
        """Write the nearest candidate of each vector that is still open."""
        (size, dim), batch = self.codebook.shape, self.batch
        launch(_nearest_code_settle_kernel, (min(self.room, 8 * processors()),))(
            (batch.maps, batch.strides, batch.cells, batch.rows),
            (self.codebook, *self.codebook.stride()),
            *(codes, self.work.lists, self.first, size, *batch.maps[-1].shape[2:]),
            G=len(batch.maps),
            D=dim,
            ALIGN=batch.packed,
            LIST=LIST,
            SPLITS=len(self.work.best),
            **tree_tile(dim),
            num_warps=4,
            maxnreg=128,  # without a limit of ours ptxas may spill to fit one more block
            enable_fp_fusion=False,
        )


def parts(batch: Vectors, codebook: Tensor, counters: Counters | None = None) -> Iterator[Part]:
    """The batch in parts that fit the workspace."""
    counters = Counters.zeros(codebook.device) if counters is None else counters
    given = (batch.maps[-1].dtype, codebook.dtype)
    halves = [(half, half) for half in (torch.float16, torch.bfloat16)]
    prepared = Codes.empty(codebook, given in halves, counters.sizes)
    survey(batch, codebook, prepared)
    room = rows_at_once(batch.most, prepared)
    if batch.most > MOST_NOTED * room:
        refuse()  # each part of a call that is made again has a memory of its own
    for first in range(0, batch.most, room):
        numbers = counters.numbers if first == 0 else None
        yield Part(batch, codebook, prepared, first, min(room, batch.most - first), numbers)


def rows_at_once(most: int, prepared: Codes) -> int:
    """How many of ``most`` vectors fit the workspace."""
    row = prepared.values.shape[1] * prepared.values.element_size() + 16 * stretches(most, prepared)[0]
    return min(most, max(1024, WORKSPACE // (row + 4 * LIST + 20) // 1024 * 1024))


def stretches(most: int, prepared: Codes) -> tuple[int, int]:
    """Number of stretches that the codes are split into, and their length: few vectors need many to fill the GPU.

    How many vectors there are the GPU alone knows. Two programs of the scan run at once on a multiprocessor; if there
    are a few more than that, all wait for these, the less the shorter a program is.
    """
    size, width = prepared.values.shape
    config = tuned.config("nearest_code", width=width)
    blocks = size // config["BLOCK_K"]
    rows = cdiv(most, config["BLOCK_N"])
    wanted = max(cdiv(blocks, STRETCH // config["BLOCK_K"]), cdiv(4 * processors(), rows))
    span = cdiv(blocks, min(wanted, blocks, MOST_STRETCHES)) * config["BLOCK_K"]
    return cdiv(size, span), span


def search(batch: Vectors, codebook: Tensor, precision: str, codes: Tensor, counters: Counters | None = None) -> None:
    """Write the nearest code of each vector to the first cell of its block in ``codes (B, H, W)`` int64."""
    exact = precision == "exact"
    for part in parts(batch, codebook, counters):
        part.scan()
        part.certify(codes, exact=exact)
        if exact:
            part.rescan()
        part.settle(codes)
        del part  # frees its workspace before the next one is allocated


def nearest_code_fwd(x: Tensor, codebook: Tensor, precision: str) -> Tensor:
    """``x (N, D)`` or ``(B, D, H, W)``, ``codebook (K, D)`` -> ``(N,)`` or ``(B, H, W)`` int64."""
    shape = x.shape[:1] if x.dim() == 2 else (x.shape[0], *x.shape[2:])
    codes = torch.empty(shape, dtype=torch.int64, device=x.device)
    if codes.numel() > 0:
        with on_device(x):
            search(Vectors.of(x), codebook, precision, codes)
    return codes
