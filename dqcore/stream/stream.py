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
from dqcore.stream.checks import check_identity, check_reading, photo_size, tables_among, whole_numbers
from dqcore.stream.coder import Reader, Writer
from dqcore.stream.header import CHECKSUM, Header, bytes_of, read_header, stride_of
from dqcore.stream.tables import CodeTables
from dqcore.stream.walk import MapWalk, code_predictor, grain_predictor

__all__ = ["MAX_PIXELS", "Decoded", "read_stream", "write_stream"]

#: Pixels of the largest photo that is written, and that is read unless the caller says otherwise.
MAX_PIXELS = 1 << 26


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
        TypeError: ``tables`` are none, or a list; or a map is no tensor.
    """
    if not isinstance(tables, CodeTables):
        hint = ": of load_code_tables(..) take the first" if isinstance(tables, Sequence) else ""
        raise TypeError(f"tables: expected CodeTables, got {type(tables).__name__}{hint}")
    size = photo_size(size)
    check_identity(identity)
    codes, grain = whole_numbers("codes", codes), whole_numbers("grain", grain, dim=2)
    _check_maps(codes, grain, tables)
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"size: expected a photo of at most {MAX_PIXELS} pixels, got {size}")
    stride = stride_of(size, (grain.shape[0], grain.shape[1]))
    walk = MapWalk(tables, _copy(grain), _copy(codes))
    coarse, finer = Writer(), Writer()
    walk.take_grain(coarse)
    walk.take_codes(coarse, 0)
    for g in range(1, tables.num_granularities):
        walk.take_codes(finer, g)
    if not np.array_equal(walk.codes, _copy(codes)):
        raise InputError("codes: expected a coarse code to fill its whole block")
    first = coarse.finish()
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
        data: The bytes of a stream, or what holds them, such as a ``memoryview``; for a preview, at least its header
            and its coarse part.
        tables: The model's tables, or all that its streams may have been written with.
        identity: The model's fingerprint, hexadecimal.
        preview: Read the coarse part alone.
        name: What the stream is called in messages, such as its file.
        max_pixels: Larger photos are refused, before memory is taken for them.

    Raises:
        InputError: The bytes are no stream, damaged, truncated, of another model or other tables, or of a photo that is
            too large.
        TypeError: ``data`` are no bytes, such as a path; or ``tables`` are none.
    """
    data, among = bytes_of(data), tables_among(tables)
    check_identity(identity)
    check_reading(preview, max_pixels)
    header = read_header(data, name)
    chosen = _matching(header, among, identity, name)
    end = header.length + header.coarse_length
    if len(data) < end + (0 if preview else CHECKSUM):
        raise InputError(f"{name}: truncated, {len(data)} bytes are left of at least {end + CHECKSUM}")
    coarse, finer = data[header.length : end], data[end : len(data) - CHECKSUM]
    if zlib.crc32(coarse, zlib.crc32(data[: header.length - 2])) & 0xFFFF != header.coarse_check:
        raise InputError(f"{name}: damaged, the checksum of its coarse part is wrong")
    if not preview and _checksum(data[:-CHECKSUM], chosen) != data[-CHECKSUM:]:
        raise InputError(f"{name}: damaged or truncated, its checksum is wrong; its preview can still be decoded")
    _check_size(header, chosen, max_pixels, name)
    return _decode(header, chosen, coarse, None if preview else finer, name)


def _decode(header: Header, tables: CodeTables, coarse: bytes, finer: bytes | None, name: str) -> Decoded:
    (rows, columns), shift = header.region_grid, tables.num_granularities - 1
    needed = grain_predictor(tables).least_bits + (code_predictor(tables, 0).least_bits if shift == 0 else 0)
    _check_bits(rows * columns * needed, coarse, name)
    codes = np.full((rows << shift, columns << shift), tables.codebook_size, dtype=np.int64)
    walk, reader = MapWalk(tables, np.zeros((rows, columns), dtype=np.int64), codes), Reader(coarse, name)
    walk.take_grain(reader)
    walk.take_codes(reader, 0)
    if finer is not None:
        reader = Reader(finer, name)
        for g in range(1, tables.num_granularities):
            number = int((walk.grain == g).sum()) * 4**g
            _check_bits(number * code_predictor(tables, g).least_bits, finer, name)
            walk.take_codes(reader, g)
    return Decoded(torch.from_numpy(walk.codes), torch.from_numpy(walk.grain), header.size)


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


def _check_maps(codes: Tensor, grain: Tensor, tables: CodeTables) -> None:
    scale = 1 << (tables.num_granularities - 1)
    if codes.shape != (grain.shape[0] * scale, grain.shape[1] * scale):
        expected = f"a code map ({scale} h, {scale} w) of a grain map (h, w)"
        raise InputError(f"codes: expected {expected}, got {tuple(codes.shape)} and {tuple(grain.shape)}")
    for name, value, limit in (("codes", codes, tables.codebook_size), ("grain", grain, tables.num_granularities)):
        if int(value.min()) < 0 or int(value.max()) >= limit:
            raise InputError(f"{name}: expected integers in [0, {limit})")


def _copy(values: Tensor) -> NDArray[np.int64]:
    return np.array(values.cpu().numpy(), dtype=np.int64)
