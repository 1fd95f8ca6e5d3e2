"""``CodeTables``: how often each granularity and each code occurs, in whole numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["PRECISION", "CodeTables"]

#: The frequencies of a table sum to 2 to this power: that of the range coder.
PRECISION = 24
_TOTAL = 1 << PRECISION
_MOST_CODES = 1 << 20  # the floor of 1 for each code then takes a sixteenth of the total


@dataclass(frozen=True, eq=False)
class CodeTables:
    """The frequencies by which a stream is coded. They are whole numbers, so every machine decodes every stream.

    Attributes:
        grains: Frequency of each granularity, int64, ``(G,)``.
        codes: Frequency of each code at each granularity, int64, ``(G, K)``.

    Each frequency is at least 1, so that anything can be coded, and each row sums to ``2**24``.

    Raises:
        InputError: A tensor of another type, shape or sum.
    """

    grains: Tensor
    codes: Tensor

    def __post_init__(self) -> None:
        for name, dimensions in {"grains": 1, "codes": 2}.items():
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != dimensions:
                got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"{name}: expected int64 frequencies of {dimensions} dimension(s), got {got}")
            object.__setattr__(self, name, value.detach().cpu().contiguous())
        if len(self.codes) != len(self.grains) or not 1 <= len(self.grains) <= 15:
            raise InputError(f"codes: expected a row for each of 1 to 15 granularities, got {tuple(self.codes.shape)}")
        if not 1 <= self.codes.shape[1] <= _MOST_CODES:
            raise InputError(f"codes: expected 1 to {_MOST_CODES} codes, got {self.codes.shape[1]}")
        for name in ("grains", "codes"):
            value = getattr(self, name)
            if int(value.min()) < 1 or bool((value.sum(-1) != _TOTAL).any()):
                raise InputError(f"{name}: expected frequencies of at least 1 that sum to {_TOTAL}")

    @classmethod
    def fit(cls, code_counts: Tensor, grain_counts: Tensor) -> CodeTables:
        """Tables for images like those that were counted; what never occurred counts as half an occurrence.

        Args:
            code_counts: How often each code occurs at each granularity, integers of at least 0, ``(G, K)``.
            grain_counts: How many regions have each granularity, integers of at least 0, ``(G,)``.
        """
        for name, value in {"code_counts": code_counts, "grain_counts": grain_counts}.items():
            if value.is_floating_point() or value.numel() == 0 or int(value.min()) < 0:
                raise InputError(f"{name}: expected integers of at least 0")
        return cls(_frequencies(grain_counts[None])[0], _frequencies(code_counts))

    @classmethod
    def uniform(cls, codebook_size: int, num_granularities: int) -> CodeTables:
        """Tables by which every code is as likely as any other: for a model whose codes nobody has counted."""
        if codebook_size < 1 or num_granularities < 1:
            raise InputError("codebook_size, num_granularities: expected at least 1")
        counts = torch.zeros(num_granularities, codebook_size, dtype=torch.int64)
        return cls.fit(counts, counts[:, 0])

    @property
    def num_granularities(self) -> int:
        """G."""
        return len(self.grains)

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.codes.shape[1]

    @cached_property
    def identity(self) -> str:
        """A hash of the frequencies, hexadecimal: the same on every machine."""
        digest = hashlib.sha256(f"{self.num_granularities} {self.codebook_size}".encode())
        for value in (self.grains, self.codes):
            digest.update(value.numpy().astype("<i4").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CodeTables):
            return NotImplemented
        return torch.equal(self.grains, other.grains) and torch.equal(self.codes, other.codes)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"CodeTables(G={self.num_granularities}, K={self.codebook_size}, identity={self.identity[:8]!r})"


def _frequencies(counts: Tensor) -> Tensor:
    """Whole numbers of at least 1 in proportion to ``2 * counts + 1``; each row of ``(n, m)`` sums to the total."""
    rows = []
    for row in (2 * counts.detach().cpu().long() + 1).tolist():
        free, whole = _TOTAL - len(row), sum(row)
        shares = [free * count // whole for count in row]  # Python's integers: no count is too large
        left = free - sum(shares)
        largest = sorted(range(len(row)), key=lambda index: (-(free * row[index] % whole), index))
        for index in largest[:left]:
            shares[index] += 1
        rows.append([share + 1 for share in shares])
    return torch.tensor(rows, dtype=torch.int64)
