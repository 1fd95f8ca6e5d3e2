"""What ``compile_check.py`` compiles of sampling beside the transformers: embeddings, draws and the walk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dqcore.kernels import add_rows, draw, take_content, take_entry
from dqcore.kernels.tape import WIDTH

SLOTS = 128
FULL = (90,)  # where more than the widest launches are compiled
#: Temperature, top_k and top_p: as sampled by default, positions, and all there is.
CONTENTS, POSITIONS, ALL = (1.0, 300, 1.0), (1.0, None, 1.0), (0.9, 300, 0.95)


def cases(arch: int) -> Iterator[Callable[[], Any]]:
    """The longest rows that a program holds, and longer ones; for one target also the paper's model, guided and not."""
    longest, longer = draw.LONGEST, 2 * draw.LONGEST + 3  # which 16 bytes do not divide: most registers
    yield lambda: _embed(torch.bfloat16)
    yield lambda: _take_entry(2, longest, ALL)
    yield lambda: _take_content(2, longest, ALL)
    yield lambda: _draw(longest, ALL)
    yield lambda: _take_entry(2, longer, ALL)
    yield lambda: _take_content(2, longer, ALL)
    yield lambda: _draw(longer, ALL)
    yield lambda: _draw(longer, CONTENTS)
    yield lambda: _draw(longer, POSITIONS)
    if arch not in FULL:
        return
    yield lambda: _embed(torch.float32)
    for copies, length, how in ((1, 1284, POSITIONS), (1, 1284, ALL), (2, 1284, POSITIONS), (1, 257, None)):
        yield lambda copies=copies, length=length, how=how: _take_entry(copies, length, how)
    for copies in (1, 2):
        yield lambda copies=copies: _take_content(copies, 1024, CONTENTS)
    for codes, how in ((1025, CONTENTS), (4096, ALL)):
        yield lambda codes=codes, how=how: _draw(codes, how)
    for how in (POSITIONS, None):
        yield lambda how=how: _take_entry(1, longer, how)
    yield lambda: _take_content(1, longer, CONTENTS)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _whole(*shape: int) -> Tensor:
    return _empty(*shape, dtype=torch.int64)


def _embed(dtype: torch.dtype) -> None:
    token = _whole(SLOTS, WIDTH)
    indices = [token[:, 0], token[:, 2], _empty(SLOTS, dtype=torch.int32), token[:, 3]]
    tables = [_empty(size, 1024, dtype=dtype) for size in (1027, 1286, 1024, 2)]
    add_rows.add_rows_fwd(None, tables, indices)
    add_rows.add_rows_fwd(_empty(SLOTS, 1024, dtype=dtype), tables[1:2], indices[1:2])


def _draw(codes: int, how: tuple[float, int | None, float]) -> None:
    draw.draw_fwd(_empty(SLOTS, codes), _whole(SLOTS), *how)


def _take_entry(copies: int, length: int, how: tuple[float, int | None, float] | None) -> None:
    here, tokens = _whole(copies, SLOTS, 1, WIDTH), _whole(copies, SLOTS, length, WIDTH)
    logits = None if how is None else _empty(copies * SLOTS, 1027, dtype=torch.bfloat16)
    tables = _whole(length), _whole(length, 5, 2)
    take_entry.take_entry_fwd(here, _whole(SLOTS, length), tokens, *tables, logits, 3.0, *(how or POSITIONS))


def _take_content(copies: int, codes: int, how: tuple[float, int | None, float]) -> None:
    here, logits = _whole(copies, SLOTS, 1, WIDTH), _empty(copies * SLOTS, codes + 3, dtype=torch.bfloat16)
    lengths, active = (_empty(copies * SLOTS, dtype=dtype) for dtype in (torch.int32, torch.bool))
    take_content.take_content_fwd(here, _whole(SLOTS, 1284), lengths, active, logits[:, :codes], 3.0, *how)
