"""The arguments of packed attention other than queries, keys and values. This file needs no Triton."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Setting(NamedTuple):
    """The arguments of ``dqcore.ops.varlen_attention`` after ``v``, checked and made explicit.

    Attributes:
        cu_seqlens_q: First query row of each sequence, and the end of the last, ``(B + 1,)`` int32.
        cu_seqlens_k: The same for keys and values.
        prefix_lengths: How many first keys of each sequence all its queries see, ``(B,)`` int32; None for no keys.
        seed: Seed and offset of dropout, ``(2,)`` int64; None without dropout.
        left: How many keys before its own a query sees; negative for all.
        right: How many keys after its own a query sees; negative for all.
        scale: The factor on scores.
        keep: How many of the 256 values of a random byte keep a weight; 256 without dropout.
        precision: How float32 is multiplied: "ieee", "tf32" or "tf32x3".
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
        """Number of sequences."""
        return self.cu_seqlens_q.shape[0] - 1

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The four tensors that a kernel reads."""
        return self[:4]
