"""Tiles and stages of each kernel by GPU and size, looked up in ``tables/<stem>.json``; nothing is tuned at run time.

A table holds, for each architecture, where its rows come from and the rows in order: ``when`` they apply (words must be
equal, numbers are upper bounds) and the ``config``, the kernel's constants and launch options. The first row that
applies is taken. ``benchmarks/tune.py`` measures a table for the GPU at hand.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dqcore.kernels import common

TABLES = Path(__file__).with_name("tables")
_forced: dict[str, dict[str, int]] = {}


def config(stem: str, **size: int | str) -> dict[str, int]:
    """How to launch kernel ``stem`` on the current GPU at this size, as ``config("nearest_code", dim=256)``.

    A GPU without a table of its own takes that of the newest architecture before it.
    """
    if stem in _forced:
        return _forced[stem]
    table = _table(stem)
    known = [arch for arch in sorted(table) if arch <= common.architecture()]
    for row in table[known[-1] if known else min(table)]["rows"]:
        if all(_meets(size[name], limit) for name, limit in row["when"].items()):
            return dict(row["config"])
    raise LookupError(f"tables/{stem}.json has no row for {size}")


@contextlib.contextmanager
def force(stem: str, config: dict[str, int]) -> Iterator[None]:
    """Launch kernel ``stem`` with this configuration, whatever the table says."""
    before = _forced.get(stem)
    _forced[stem] = config
    try:
        yield
    finally:
        _forced.pop(stem)
        if before is not None:
            _forced[stem] = before


@functools.cache
def _table(stem: str) -> dict[int, dict[str, Any]]:
    return {int(arch): part for arch, part in json.loads((TABLES / f"{stem}.json").read_text()).items()}


def _meets(value: int | str, limit: int | str) -> bool:
    return value == limit if isinstance(limit, str) or isinstance(value, str) else value <= limit
