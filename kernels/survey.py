"""The first launch of a search: the vectors of a lookup are listed while the codes are measured.

Neither needs the other, and either alone leaves most of a GPU idle. ``vectors`` and ``codes`` have the work itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.codes import MEASURE, SAMPLES, Codes, measure_codes
from dqcore.kernels.common import cdiv, next_power_of_2
from dqcore.kernels.launch import launch
from dqcore.kernels.vectors import Vectors, list_vectors

REGIONS = 128  # regions whose vectors one program lists


@triton.jit(do_not_specialize=["lines", "columns", "across", "K", "measuring"])
def _nearest_code_survey_kernel(
    grain, listed, lines, columns, across, codebook, measured, K, measuring,
    G: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr,
    D: tl.constexpr, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The first ``measuring`` programs measure the codes, which takes longer; all others list vectors.

    ``measured`` is None where codes are taken as they are, ``grain`` where there is no list.
    """
    program = tl.program_id(0)
    if measured is not None:  # noqa: SIM102 - decided as it is compiled, which an `and` need not be
        if program < measuring:
            measure_codes(codebook, measured, K, program, measuring, D, SAMPLES, CHANNELS, BLOCK_K, BLOCK_D)
    if grain is not None:  # noqa: SIM102
        if program >= measuring:
            list_vectors(grain, listed, lines, columns, program - measuring, across, G, LINES, COLUMNS)


def survey(batch: Vectors, codebook: Tensor, prepared: Codes) -> None:
    """Write the list of a batch and the centre of ``codebook (K, D)``, as far as there are such."""
    size, dim = codebook.shape
    block = min(256, next_power_of_2(dim))
    rows = max(1, MEASURE["ELEMENTS"] // block)
    largest = prepared.largest
    measured = None if largest is None else (prepared.centre, largest.view(torch.int32))
    measuring = 0 if measured is None else cdiv(size, rows)
    images, height, width = (0, 0, 1) if batch.grain is None else batch.grain.shape
    lines = images * height
    columns = min(REGIONS, next_power_of_2(width))
    across = cdiv(width, columns)
    programs = measuring + cdiv(lines, REGIONS // columns) * across
    if programs == 0:
        return
    launch(_nearest_code_survey_kernel, (programs,))(
        *(batch.grain, (batch.cells, batch.places, batch.number), lines, width, across),
        (codebook, *codebook.stride()),
        *(measured, size, measuring),
        G=len(batch.maps),
        LINES=REGIONS // columns,
        COLUMNS=columns,
        D=dim,
        SAMPLES=SAMPLES,
        CHANNELS=MEASURE["CHANNELS"],
        BLOCK_K=rows,
        BLOCK_D=block,
        num_warps=MEASURE["num_warps"],
        enable_fp_fusion=True,
    )
