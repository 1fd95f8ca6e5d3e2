"""What an attention over packed sequences is told beside queries, keys and values; needs no Triton."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Setting(NamedTuple):
    """The arguments of ``dqcore.ops.varlen_attention`` after ``v``, checked and made explicit.

    Attributes:
        cu_seqlens_q: First rows of the sequences, and the end of the last.
        cu_seqlens_k: The same for keys and values.
        prefix_lengths: How many first keys of a sequence all its queries see; None for none.
        seed: Of dropout; None without.
        left: How many keys before its own a query sees; negative for all.
        right: How many after it; negative for all.
        scale: The factor on scores.
        keep: Of 256 byte values, how many keep a weight.
        precision: Of float32 products.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    prefix_lengths: Tensor | None
    seed: Tensor | None
    left: int
    right: int
    scale: float
    keep: int
    precision: str

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.cu_seqlens_q.shape[0] - 1

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What a kernel reads of it from memory."""
        return self[:4]
