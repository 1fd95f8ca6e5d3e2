"""A saved tokenizer that writes and reads ``.dqc`` streams: together with their tables, and the name it goes by.

:mod:`dqcore.stream` knows the format and no model; :mod:`dqcore.inference.encode_streams` and ``decode`` use both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dqcore.data.reading import check_read
from dqcore.errors import InputError
from dqcore.inference.load import load_named_tokenizer
from dqcore.inference.rate import saved_tables
from dqcore.stream import CodeTables, Decoded, read_header, read_stream, write_stream

__all__ = ["Codec", "check_regions", "load_codec"]


@dataclass(frozen=True)
class Codec:
    """A tokenizer that writes and reads ``.dqc`` streams.

    Attributes:
        model: The tokenizer, in evaluation mode.
        tables: The tables that it writes with, then those that older streams may have been written with.
        identity: Its :func:`dqcore.models.auto.fingerprint`.
    """

    model: Any
    tables: tuple[CodeTables, ...]
    identity: str

    def write(self, codes: Tensor, grain: Tensor, size: tuple[int, int]) -> bytes:
        """The stream of one photo of ``size`` (height, width): its code map ``(H, W)`` and grain map ``(h, w)``."""
        return write_stream(codes, grain, size, self.tables[0], self.identity)

    def read(self, data: bytes, name: str = "stream", *, preview: bool = False) -> Decoded:
        """The codes of a stream, see :func:`dqcore.stream.read_stream`.

        Raises:
            InputError: Also for a photo of more pixels than :func:`dqcore.data.reading.pixel_limit` allows, or one
                whose regions are not this tokenizer's. Both are known before its codes are read.
        """
        header = read_header(data, name)
        if header.model == self.identity[:16]:
            check_regions(header.size, header.region_grid, self.model.config.strides[0], name)
            check_read(header.size[1], header.size[0], f"{name}: its ")
        return read_stream(data, self.tables, self.identity, preview=preview, name=name)


def check_regions(size: tuple[int, int], grid: tuple[int, ...], stride: int, name: str) -> None:
    """Raise :class:`InputError` unless a photo of ``size`` (height, width) has this grid of regions."""
    if grid != (-(-size[0] // stride), -(-size[1] // stride)):
        raise InputError(f"{name}: a photo of {size[1]}x{size[0]} pixels has other regions than {tuple(grid)}")


def load_codec(path: Path, device: str = "auto") -> Codec:
    """Load a saved tokenizer and its tables; one without tables has uniform ones.

    Args:
        path: As in :func:`dqcore.models.auto.model_folder`.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        FileNotFoundError: There is no saved model.
        InputError: It is no tokenizer, or a file is damaged.
    """
    model, identity = load_named_tokenizer(path, device)
    return Codec(model, saved_tables(path, model.config), identity)
