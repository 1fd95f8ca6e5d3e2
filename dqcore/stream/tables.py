"""``CodeTables``: how often each granularity and each code occurs, and beside what, in whole numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dqcore.errors import InputError, at_least

__all__ = ["MOST_FACTOR", "PRECISION", "TOTAL", "UNIT", "CodeTables", "frequencies"]

#: The frequencies of a table sum to 2 to this power: that of the range coder.
PRECISION = 24
TOTAL = 1 << PRECISION
#: A factor of one, and the largest factor.
UNIT, MOST_FACTOR = 1 << 8, (1 << 16) - 1
_MOST_CODES = 1 << 20  # the floor of 1 for each code then takes a sixteenth of the total


@dataclass(frozen=True, eq=False)
class CodeTables:
    """What a stream is coded by. All are whole numbers, so every machine decodes every stream.

    Attributes:
        grains: Frequency of each granularity, int64, ``(G,)``, each at least 1, with the sum ``2**24``.
        codes: Frequency of each code at each granularity, int64, ``(G, K)``; so is each row.
        classes: Class of each code, int64, ``(K,)``, in [0, C). Codes of a class have similar codes beside them.
        grain_factors: ``[a, b]``: how much more often than elsewhere a region has granularity b beside a region of
            granularity a, in 256ths, int64, ``(G, G)``, in [1, 65535].
        code_factors: ``[g, c, k]``: the same for code k of granularity g beside a code of class c, ``(G, C, K)``.

    Raises:
        InputError: A tensor of another type, shape, range or sum.
    """

    grains: Tensor
    codes: Tensor
    classes: Tensor
    grain_factors: Tensor
    code_factors: Tensor

    def __post_init__(self) -> None:
        for name in _FIELDS:
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.numel() == 0:
                got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"{name}: expected an int64 tensor, got {got}")
            object.__setattr__(self, name, value.detach().cpu().contiguous())
        self._check_shapes()
        for name in ("grains", "codes"):
            value = getattr(self, name)
            if int(value.min()) < 1 or bool((value.sum(-1) != TOTAL).any()):
                raise InputError(f"{name}: expected frequencies of at least 1 that sum to {TOTAL}")
        limits = {"classes": (0, self.code_factors.shape[1] - 1)}
        limits |= {name: (1, MOST_FACTOR) for name in ("grain_factors", "code_factors")}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if int(value.min()) < low or int(value.max()) > high:
                raise InputError(f"{name}: expected values in [{low}, {high}]")

    def _check_shapes(self) -> None:
        number, size = self.grains.numel(), self.codes.shape[-1]
        if number > 15 or size > _MOST_CODES:
            raise InputError(f"codes: expected at most 15 granularities and {_MOST_CODES} codes, got {number}, {size}")
        shapes = {
            "grains": (number,),
            "codes": (number, size),
            "classes": (size,),
            "grain_factors": (number, number),
            "code_factors": (number, self.code_factors.shape[1] if self.code_factors.dim() == 3 else 1, size),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise InputError(f"{name}: expected shape {shape}, got {tuple(getattr(self, name).shape)}")

    @classmethod
    def fit(cls, code_counts: Tensor, grain_counts: Tensor) -> CodeTables:
        """Tables for images like those that were counted, without regard to what lies beside what.

        :func:`dqcore.stream.fit_tables` counts that too, for a shorter stream.

        Args:
            code_counts: How often each code occurs at each granularity, integers of at least 0, ``(G, K)``. What never
                occurred counts as half an occurrence.
            grain_counts: How many regions have each granularity, integers of at least 0, ``(G,)``.
        """
        for name, value in {"code_counts": code_counts, "grain_counts": grain_counts}.items():
            if value.is_floating_point() or value.numel() == 0 or int(value.min()) < 0:
                raise InputError(f"{name}: expected integers of at least 0")
        grains, codes = frequencies(grain_counts[None].double() + 0.5)[0], frequencies(code_counts.double() + 0.5)
        number, size = codes.shape
        alone = torch.full((number, 1, size), UNIT)
        return cls(grains, codes, torch.zeros(size).long(), torch.full((number, number), UNIT), alone)

    @classmethod
    def uniform(cls, codebook_size: int, num_granularities: int) -> CodeTables:
        """Tables by which every code is as likely as any other: for a model whose codes nobody has counted."""
        at_least(1, codebook_size=codebook_size, num_granularities=num_granularities)
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
        """A hash of all tables, hexadecimal: the same on every machine."""
        digest = hashlib.sha256()
        for name in _FIELDS:
            value = getattr(self, name)
            digest.update(f"{name} {tuple(value.shape)}".encode() + value.numpy().astype("<i4").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CodeTables):
            return NotImplemented
        return all(torch.equal(getattr(self, name), getattr(other, name)) for name in _FIELDS)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"CodeTables(G={self.num_granularities}, K={self.codebook_size}, identity={self.identity[:8]!r})"


_FIELDS = tuple(CodeTables.__dataclass_fields__)


def frequencies(weights: Tensor) -> Tensor:
    """Whole numbers of at least 1 in proportion to float64 weights ``(n, m)`` above 0; each row sums to the total."""
    size = weights.shape[-1]
    shares = (TOTAL - size) * weights / weights.sum(-1, keepdim=True)
    whole = shares.floor().long()
    left = TOTAL - size - whole.sum(-1, keepdim=True)  # fewer than the row is long
    rank = (whole - shares).argsort(dim=-1, stable=True).argsort(dim=-1)
    return 1 + whole + (rank < left).long()
