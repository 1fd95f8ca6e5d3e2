"""What codes cost: the bytes of the stream that they are written in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dqcore.models.auto import model_folder
from dqcore.stream import CodeTables, load_code_tables, write_stream

__all__ = ["StreamCost", "saved_tables"]


def saved_tables(checkpoint: Path, config: Any) -> tuple[CodeTables, ...]:
    """The tables of a saved tokenizer, those to write with first.

    Args:
        checkpoint: Folder of a saved tokenizer or of a training run; without tables of its own it has uniform ones.
        config: The tokenizer's configuration.
    """
    return tuple(load_code_tables(model_folder(checkpoint), config.codebook_size, config.num_granularities))


@dataclass(frozen=True)
class StreamCost:
    """Counts the bytes of ``.dqc`` streams.

    Attributes:
        tables: The tables that codes are written with.
        identity: Stands for the tokenizer's fingerprint; the length of the stream does not depend on it.
    """

    tables: CodeTables
    identity: str = "0" * 64

    @classmethod
    def of_checkpoint(cls, checkpoint: Path, config: Any) -> StreamCost:
        """With the tables to write with, see :func:`saved_tables`."""
        return cls(saved_tables(checkpoint, config)[0])

    @classmethod
    def uniform(cls, config: Any) -> StreamCost:
        """With tables by which every code is as likely as any other."""
        return cls(CodeTables.uniform(config.codebook_size, config.num_granularities))

    def bytes_of(self, codes: Tensor, grain: Tensor, height: int, width: int) -> int:
        """Bytes of the file of one photo.

        Args:
            codes: Its code map ``(H, W)``.
            grain: Its grain map ``(h, w)``.
            height: Of the photo before padding, in pixels.
            width: As ``height``.
        """
        return len(write_stream(codes, grain, (height, width), self.tables, self.identity))
