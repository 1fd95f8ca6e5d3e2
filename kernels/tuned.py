"""Tiles and launch options of each kernel, looked up in ``tables/<stem>.json``; nothing is tuned at run time.

A table has an entry for each architecture: the ``rows``, and where they come from (``source``). A row has the sizes for
which it is meant (``when``: words must be equal, numbers are upper bounds) and the kernel's constants and launch
options (``config``). The first row that fits is taken. ``benchmarks/tune.py`` measures a table for the GPU at hand.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import triton

from dqcore.kernels import common, replay

TABLES = Path(__file__).with_name("tables")
#: What :func:`force` asks for. A global, since a backward pass launches its kernels from threads of autograd's own.
_forced: dict[str, dict[str, int]] = {}


def config(stem: str, **size: int | str) -> dict[str, int]:
    """How to launch kernel ``stem`` on the current GPU at this size, as ``config("nearest_code", dim=256)``.

    A GPU without a table of its own takes that of the newest architecture before it, or else the oldest one.

    Raises:
        LookupError: No row is for this size, or a row asks for a size that was not given.
        ValueError: The table is malformed.
    """
    if stem in _forced:
        return dict(_forced[stem])
    return dict(_row(stem, _architecture(_device()), tuple(size.items())))


@contextlib.contextmanager
def force(stem: str, config: dict[str, int]) -> Iterator[None]:
    """Launch kernel ``stem`` with this configuration, whatever the table says."""
    before = _forced.get(stem)
    _forced[stem] = config
    replay.forget()
    try:
        yield
    finally:
        _forced.pop(stem)
        if before is not None:
            _forced[stem] = before
        replay.forget()


def forget() -> None:
    """Read tables and GPUs anew."""
    replay.forget()
    for cached in (_architecture, _row, table):
        cached.cache_clear()


def _device() -> int:
    return -1 if common.INTERPRETED else int(triton.runtime.driver.active.get_current_device())


@functools.cache
def _architecture(device: int) -> int:
    """That of the current GPU, whose number is ``device``; to ask it takes microseconds."""
    return common.architecture()


@functools.lru_cache(maxsize=4096)
def _row(stem: str, arch: int, size: tuple[tuple[str, int | str], ...]) -> dict[str, int]:
    given, rows = dict(size), table(stem)
    known = [other for other in rows if other <= arch]
    for row in rows[max(known, default=min(rows))]:
        if missing := row["when"].keys() - given.keys():
            raise LookupError(f"tables/{stem}.json asks for {', '.join(sorted(missing))}, got {given}")
        if applies(row["when"], given):
            return dict(row["config"])
    raise LookupError(f"tables/{stem}.json has no row for {given}")


@functools.cache
def table(stem: str) -> dict[int, list[dict[str, Any]]]:
    """The rows of a table by architecture.

    Raises:
        ValueError: The table is malformed.
    """
    path = TABLES / f"{stem}.json"
    try:
        found = {int(arch): part["rows"] for arch, part in json.loads(path.read_text()).items()}
        rows = [(row["when"].items(), row["config"].values()) for rows in found.values() for row in rows]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected rows of 'when' and 'config' for each architecture: {error!r}") from error
    if not found or not all(found.values()):
        raise ValueError(f"{path}: expected at least one row for each architecture")
    if not all(isinstance(value, int) for _, values in rows for value in values):
        raise ValueError(f"{path}: expected whole numbers in each config")
    return found


def applies(when: Mapping[str, int | str], size: Mapping[str, int | str]) -> bool:
    """Whether a row is for this size: its words must be equal, its numbers are upper bounds."""

    def meets(value: int | str, limit: int | str) -> bool:
        return value == limit if isinstance(limit, str) or isinstance(value, str) else value <= limit

    return all(meets(size[name], limit) for name, limit in when.items())
