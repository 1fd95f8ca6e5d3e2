"""The first bytes of a stream: what it is, whose it is, and how large.

- 3 bytes: ``dqc``
- 1 byte: version of the format, 1
- 8 bytes: the beginning of the tokenizer's fingerprint
- 2 bytes: the beginning of the tables' identity
- 1 byte: log2 of the coarsest stride in the upper four bits, the number of granularities in the lower four
- 1 to 4 bytes each: height and width of the photo in pixels, and the length of the coarse part in bytes; seven bits a
  byte, the lowest first, where the eighth bit says that another byte follows
- 2 bytes: lower half of the CRC-32 of the bytes before and of the coarse part, little-endian

Then come the coarse part, the finer part, and a CRC-32 (:mod:`dqcore.stream.stream`).
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from typing import Any

from dqcore.errors import InputError

__all__ = ["CHECKSUM", "Header", "bytes_of", "read_header", "stride_of"]

MAGIC, VERSION = b"dqc", 1
CHECKSUM = 4  # bytes at the end of a stream
_FIXED = 15  # bytes before the first number of variable length
_MOST_BYTES = 4  # of such a number


@dataclass(frozen=True)
class Header:
    """What a stream says about itself.

    Attributes:
        model: Fingerprint of the tokenizer, its first 16 hexadecimal digits.
        tables: Identity of the tables, its first 4 hexadecimal digits.
        num_granularities: G, 1 to 15.
        stride: The coarsest stride, a power of two; at least one by which the photo has its regions.
        size: Height and width of the photo in pixels.
        coarse_length: Bytes of the coarse part.
        coarse_check: Lower half of the CRC-32 of this header and the coarse part.
        length: Bytes of this header.
    """

    model: str
    tables: str
    num_granularities: int
    stride: int
    size: tuple[int, int]
    coarse_length: int
    coarse_check: int = 0
    length: int = 0

    @property
    def region_grid(self) -> tuple[int, int]:
        """Regions ``(h, w)`` of the photo."""
        return -(-self.size[0] // self.stride), -(-self.size[1] // self.stride)

    def to_bytes(self, coarse: bytes) -> bytes:
        """The header of a stream with this coarse part."""
        kind = (self.stride.bit_length() - 1) << 4 | self.num_granularities
        head = MAGIC + bytes([VERSION]) + bytes.fromhex(self.model) + bytes.fromhex(self.tables) + bytes([kind])
        head += b"".join(_number(value) for value in (*self.size, self.coarse_length))
        return head + (zlib.crc32(head + coarse) & 0xFFFF).to_bytes(2, "little")


def bytes_of(data: Any) -> bytes:
    """The bytes of anything that holds some, such as a ``memoryview`` or an ``mmap``.

    Raises:
        TypeError: It holds none.
    """
    if isinstance(data, bytes):
        return data
    try:
        return bytes(memoryview(data))
    except TypeError:
        hint = ": pass the file's bytes, open(path, 'rb').read()" if isinstance(data, (str, os.PathLike)) else ""
        raise TypeError(f"data: expected the bytes of a stream, got {type(data).__name__}{hint}") from None


def read_header(data: bytes, name: str = "stream") -> Header:
    """Read the header of a stream.

    Args:
        data: The stream, or its beginning.
        name: What the stream is called in messages.

    Raises:
        InputError: It is no stream, one of a later version, or it breaks off.
        TypeError: These are no bytes.
    """
    data = bytes_of(data)
    if data[:3] != MAGIC:
        raise InputError(f"{name}: not a .dqc stream (it does not begin with {MAGIC.decode()!r})")
    if len(data) > 3 and data[3] != VERSION:
        raise InputError(f"{name}: a .dqc stream of version {data[3]}; this dqcore reads version {VERSION}")
    if len(data) < _FIXED:
        raise InputError(f"{name}: truncated, it breaks off in the header")
    kind, place, numbers = data[14], _FIXED, []
    for _ in range(3):
        value, place = _read_number(data, place, name)
        numbers.append(value)
    if len(data) < place + 2:
        raise InputError(f"{name}: truncated, it breaks off in the header")
    height, width, coarse = numbers
    if min(height, width) < 1 or kind & 15 == 0:
        raise InputError(f"{name}: damaged, a photo of {width}x{height} pixels and {kind & 15} granularities")
    check = int.from_bytes(data[place : place + 2], "little")
    return Header(
        data[4:12].hex(), data[12:14].hex(), kind & 15, 1 << (kind >> 4), (height, width), coarse, check, place + 2
    )


def stride_of(size: tuple[int, int], region_grid: tuple[int, int]) -> int:
    """The smallest power of two that divides a photo of this size into these regions.

    Raises:
        InputError: None does.
    """
    for shift in range(16):
        if tuple(-(-side // (1 << shift)) for side in size) == region_grid:
            return 1 << shift
    raise InputError(f"size: expected height and width of a photo with regions {region_grid}, got {size}")


def _number(value: int) -> bytes:
    groups = [value >> shift & 127 for shift in range(0, max(7, value.bit_length()), 7)]
    if len(groups) > _MOST_BYTES:
        raise InputError(f"size: expected less than {1 << 7 * _MOST_BYTES}, got {value}")
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def _read_number(data: bytes, place: int, name: str) -> tuple[int, int]:
    """A number of variable length, and the place behind it."""
    value = 0
    for index in range(_MOST_BYTES):
        if place + index >= len(data):
            raise InputError(f"{name}: truncated, it breaks off in the header")
        byte = data[place + index]
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, place + index + 1
    raise InputError(f"{name}: damaged, a number in the header does not end")
