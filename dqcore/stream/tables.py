"""``CodeTables``: how often each granularity and each code occurs, and beside what, in whole numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dqcore.errors import InputError, whole_given

__all__ = ["MOST_FACTOR", "PRECISION", "TOTAL", "UNIT", "CodeTables", "check_numbers", "frequencies"]

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
            usable = isinstance(value, Tensor) and value.dtype == torch.int64 and not value.is_meta
            if not usable or value.numel() == 0 or value.dim() == 0:
                raise InputError(f"{name}: expected an int64 tensor, got {_kind(value)}")
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
        check_numbers(number, size, "grains, codes")
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

        Raises:
            InputError: Counts of another dtype, shape or range.
            TypeError: One is no tensor.
        """
        for name, value, dim in (("code_counts", code_counts, 2), ("grain_counts", grain_counts, 1)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
            if value.is_floating_point() or value.is_complex() or value.is_meta or value.dim() != dim:
                raise InputError(f"{name}: expected integers in {dim} dimensions, got {_kind(value)}")
            if value.numel() == 0 or int(value.min()) < 0:
                raise InputError(f"{name}: expected integers of at least 0")
        if len(code_counts) != len(grain_counts):
            raise InputError(f"grain_counts: expected shape ({len(code_counts)},), got {tuple(grain_counts.shape)}")
        grains, codes = frequencies(grain_counts[None].double() + 0.5)[0], frequencies(code_counts.double() + 0.5)
        number, size = codes.shape
        alone = torch.full((number, 1, size), UNIT)
        return cls(grains, codes, torch.zeros(size).long(), torch.full((number, number), UNIT), alone)

    @classmethod
    def uniform(cls, codebook_size: int, num_granularities: int) -> CodeTables:
        """Tables by which every code is as likely as any other: for a model whose codes nobody has counted."""
        whole_given(1, codebook_size=codebook_size, num_granularities=num_granularities)
        check_numbers(num_granularities, codebook_size, "num_granularities, codebook_size")
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


def check_numbers(granularities: int, codes: int, names: str) -> None:
    """Raise :class:`InputError` if tables cannot have so many granularities or codes; ``names`` are theirs."""
    if granularities > 15 or codes > _MOST_CODES:
        most = f"15 granularities and {_MOST_CODES} codes"
        raise InputError(f"{names}: expected at most {most}, got {granularities}, {codes}")


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype} {tuple(value.shape)} on {value.device}"


_FIELDS = tuple(CodeTables.__dataclass_fields__)


def frequencies(weights: Tensor) -> Tensor:
    """Whole numbers of at least 1 in proportion to float64 weights ``(n, m)`` above 0; each row sums to the total."""
    size = weights.shape[-1]
    shares = (TOTAL - size) * weights / weights.sum(-1, keepdim=True)
    whole = shares.floor().long()
    left = TOTAL - size - whole.sum(-1, keepdim=True)  # fewer than the row is long
    rank = (whole - shares).argsort(dim=-1, stable=True).argsort(dim=-1)
    return 1 + whole + (rank < left).long()
