"""A photo's codes and grain map as bytes, and back.

A stream is a header, a coarse part, a finer part and a checksum. The coarse part holds the grain map and the codes of
granularity 0, so that it makes a preview by itself; the finer part the codes of the other granularities. Both take
numbers in the order of a :class:`dqcore.CodeSequence`: granularity ascending, row-major within a granularity.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqcore.errors import InputError
from dqcore.stream.coder import Reader, Writer, least_bits, table_model
from dqcore.stream.header import CHECKSUM, Header, read_header, stride_of
from dqcore.stream.tables import CodeTables

__all__ = ["MAX_PIXELS", "Decoded", "read_stream", "write_stream"]

#: Pixels of the largest photo that is read, unless the caller says otherwise.
MAX_PIXELS = 1 << 28


class Decoded(NamedTuple):
    """What a stream holds.

    Attributes:
        codes: Code map on the finest grid, int64, ``(H, W)``; in a preview, regions of finer granularities have code K.
        grain: Grain map, int64, ``(h, w)``.
        size: Height and width of the photo in pixels; the code map may reach over its lower and right edges.
    """

    codes: Tensor
    grain: Tensor
    size: tuple[int, int]


def write_stream(codes: Tensor, grain: Tensor, size: Sequence[int], tables: CodeTables, identity: str) -> bytes:
    """One photo as a stream.

    Args:
        codes: Code map on the finest grid, int64, ``(H, W)``, values in [0, K); a coarse code fills its whole block.
        grain: Grain map, int64, ``(h, w)``, values in [0, G); ``H = h * 2**(G - 1)``, and so for the width.
        size: Height and width of the photo in pixels.
        tables: The model's tables.
        identity: The model's fingerprint, hexadecimal.

    Returns:
        The bytes. The same photo gives the same bytes on every machine.

    Raises:
        InputError: The arguments do not fit each other.
    """
    size = (int(size[0]), int(size[1]))
    grains, code_map = grain.cpu().numpy(), codes.cpu().numpy()
    _check_maps(code_map, grains, tables)
    parts = [_pick(code_map, grains, g, tables.num_granularities) for g in range(tables.num_granularities)]
    _check_blocks(code_map, grains, parts)
    models = [table_model(row) for row in tables.codes.numpy()]
    coarse, finer = Writer(), Writer()
    coarse.write(grains.ravel(), table_model(tables.grains.numpy()))
    coarse.write(parts[0], models[0])
    for part, model in zip(parts[1:], models[1:], strict=True):
        finer.write(part, model)
    first = coarse.finish()
    stride = stride_of(size, grains.shape)
    header = Header(identity[:16], tables.identity[:4], tables.num_granularities, stride, size, len(first))
    data = header.to_bytes(first) + first + finer.finish()
    return data + _checksum(data, tables)


def read_stream(
    data: bytes,
    tables: CodeTables | Sequence[CodeTables],
    identity: str,
    *,
    preview: bool = False,
    name: str = "stream",
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """The codes of a stream.

    Args:
        data: The bytes of a stream; for a preview, at least its header and its coarse part.
        tables: The model's tables, or all that its streams may have been written with.
        identity: The model's fingerprint, hexadecimal.
        preview: Read the coarse part alone.
        name: What the stream is called in messages, such as its file.
        max_pixels: Larger photos are refused, before memory is taken for them.

    Raises:
        InputError: The bytes are no stream, damaged, truncated, of another model or other tables, or of a photo that is
            too large.
    """
    header = read_header(data, name)
    chosen = _matching(header, [tables] if isinstance(tables, CodeTables) else tables, identity, name)
    end = header.length + header.coarse_length
    if len(data) < end + (0 if preview else CHECKSUM):
        raise InputError(f"{name}: truncated, {len(data)} bytes are left of at least {end + CHECKSUM}")
    coarse, finer = data[header.length : end], data[end : len(data) - CHECKSUM]
    if zlib.crc32(coarse, zlib.crc32(data[: header.length - 2])) & 0xFFFF != header.coarse_check:
        raise InputError(f"{name}: damaged, the checksum of its coarse part is wrong")
    if not preview and _checksum(data[:-CHECKSUM], chosen) != data[-CHECKSUM:]:
        raise InputError(f"{name}: damaged or truncated, its checksum is wrong")
    _check_size(header, chosen, max_pixels, name)
    return _decode(header, chosen, coarse, None if preview else finer, name)


def _decode(header: Header, tables: CodeTables, coarse: bytes, finer: bytes | None, name: str) -> Decoded:
    rows, columns = header.region_grid
    cheapest = least_bits(tables.grains.numpy()) + (
        least_bits(tables.codes[0].numpy()) if len(tables.grains) == 1 else 0
    )
    _check_bits(rows * columns * cheapest, coarse, name)
    models = [table_model(row) for row in tables.codes.numpy()]
    reader = Reader(coarse, name)
    grain = reader.read(rows * columns, table_model(tables.grains.numpy())).reshape(rows, columns)
    counts = np.bincount(grain.ravel(), minlength=tables.num_granularities)
    shift = tables.num_granularities - 1
    codes = np.full((rows << shift, columns << shift), tables.codebook_size, dtype=np.int64)
    _put(codes, grain, 0, reader.read(int(counts[0]), models[0]))
    if finer is not None:
        needed = sum(int(n) * 4**g * least_bits(tables.codes[g].numpy()) for g, n in enumerate(counts) if g)
        _check_bits(needed, finer, name)
        reader = Reader(finer, name)
        for g in range(1, tables.num_granularities):
            _put(codes, grain, g, reader.read(int(counts[g]) * 4**g, models[g]))
    return Decoded(torch.from_numpy(codes), torch.from_numpy(grain.astype(np.int64)), header.size)


def _checksum(data: bytes, tables: CodeTables) -> bytes:
    """CRC-32 of the tables' whole identity and the bytes: of the former, the header has but a part."""
    return zlib.crc32(data, zlib.crc32(bytes.fromhex(tables.identity))).to_bytes(CHECKSUM, "little")


def _matching(header: Header, tables: Sequence[CodeTables], identity: str, name: str) -> CodeTables:
    """The tables that the stream was written with."""
    if header.model != identity[:16]:
        raise InputError(f"{name}: written by the model {header.model}, this one is {identity[:16]}")
    for candidate in tables:
        if header.tables == candidate.identity[:4] and header.num_granularities == candidate.num_granularities:
            return candidate
    known = ", ".join(candidate.identity[:4] for candidate in tables)
    raise InputError(f"{name}: written with the model's tables {header.tables}, here there are only {known}")


def _check_size(header: Header, tables: CodeTables, max_pixels: int, name: str) -> None:
    """Raise if the stream's photo is too large, or larger than its coarse part can hold."""
    (height, width), (rows, columns) = header.size, header.region_grid
    if height * width > max_pixels or rows * columns * 4 ** (tables.num_granularities - 1) > max_pixels // 4:
        raise InputError(f"{name}: a photo of {width}x{height} pixels, at most {max_pixels} pixels are read")


def _check_bits(needed: float, data: bytes, name: str) -> None:
    """Raise if a part is too short for its numbers; the coder may hold back two words."""
    if needed > 8 * len(data) + 64:
        raise InputError(f"{name}: damaged, {len(data)} bytes cannot hold its codes")


def _check_maps(codes: NDArray[np.int64], grain: NDArray[np.int64], tables: CodeTables) -> None:
    scale = 1 << (tables.num_granularities - 1)
    if grain.ndim != 2 or grain.size == 0 or codes.shape != (grain.shape[0] * scale, grain.shape[1] * scale):
        raise InputError(
            f"codes: expected a code map ({scale} h, {scale} w) of a grain map (h, w), "
            f"got {codes.shape} and {grain.shape}"
        )
    for name, value, limit in (
        ("codes", codes, tables.codebook_size),
        ("grain", grain, tables.num_granularities),
    ):
        if value.dtype.kind not in "iu" or value.min() < 0 or value.max() >= limit:
            raise InputError(f"{name}: expected integers in [0, {limit})")


def _check_blocks(codes: NDArray[np.int64], grain: NDArray[np.int64], parts: list[NDArray[np.int64]]) -> None:
    """Raise unless the parts, put back, give the code map."""
    again = np.empty_like(codes)
    for g, part in enumerate(parts):
        _put(again, grain, g, part)
    if not np.array_equal(again, codes):
        raise InputError("codes: expected a coarse code to fill its whole block")


def _at(grain: NDArray[np.int64], g: int) -> NDArray[np.bool_]:
    """Which cells of granularity g's own grid belong to regions of that granularity."""
    return (grain == g).repeat(1 << g, 0).repeat(1 << g, 1)


def _pick(codes: NDArray[np.int64], grain: NDArray[np.int64], g: int, num_granularities: int) -> NDArray[np.int64]:
    """The codes of granularity g, in row-major order of its grid."""
    span = 1 << (num_granularities - 1 - g)
    return codes[::span, ::span][_at(grain, g)]


def _put(codes: NDArray[np.int64], grain: NDArray[np.int64], g: int, part: NDArray[np.integer]) -> None:
    """Put the codes of granularity g into their blocks of the code map."""
    span = len(codes) // (len(grain) << g)
    where = _at(grain, g)
    blocks = codes.reshape(where.shape[0], span, where.shape[1], span).swapaxes(1, 2)
    blocks[where] = part[:, None, None]
