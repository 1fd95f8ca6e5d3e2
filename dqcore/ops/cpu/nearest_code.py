"""Exact nearest code at the speed of a blocked float32 product.

Scores ``||c'||^2 - 2 x'.c'`` of vectors and codes, both less the codebook's mean and scaled by a power of two (neither
moves the argmin), come from one matrix product per block. With unit roundoff u, ``C = max ||c'||`` and any order of
summation, a computed score is off by at most

    E = 1.01 (D + 8) u (2 ||x'|| C + C^2) + 2^-47 (||x'|| + C)^2,

where D + 8 covers the product, the centring of both factors, ``||c'||^2`` and the last addition, and the second term
the rounding of the float64 distance that defines the answer. So the nearest code lies within 2E of the smallest score.
A row with one such candidate is settled; the others compare their candidates' float64 distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dqcore import backends
from dqcore.ops.nearest_code import nearest_code_reference, squared_distance

TOKENS = 2**21  # elements of a block of vectors: 8 MB
CODES = 2**21  # elements of a block of codes: 8 MB
SCORES = 2**20  # elements of a block of scores: 4 MB
PAIRS = 2**18  # elements of a block in float64: 2 MB
LANES = 32  # scores are compared with their limit a column of K / LANES at a time


def nearest_code_cpu(x: Tensor, codebook: Tensor, precision: str) -> Tensor:
    """:func:`dqcore.ops.nearest_code` for float16, bfloat16 and float32 on the CPU."""
    searcher = CodeSearch(codebook, precision)
    codes = [torch.zeros(0, dtype=torch.int64)]
    codes += [searcher(tokens) for tokens in _token_blocks(x)]
    return torch.cat(codes).view(x.shape[:1] if x.dim() == 2 else (x.shape[0], *x.shape[2:]))


def _token_blocks(x: Tensor) -> Iterator[Tensor]:
    """The vectors of ``x`` in order, as ``(n, D)`` blocks of bounded size."""
    dim = max(1, x.shape[1])
    most = min(max(1, TOKENS // dim), 2**17)
    if x.dim() == 2:
        yield from x.split(most)
    elif x.numel() > 0:
        images, lines = max(1, most // (x.shape[2] * x.shape[3])), max(1, most // x.shape[3])
        for some in x.split(images):
            for strip in some.split(lines, dim=2):
                for piece in strip.split(most, dim=3):
                    yield piece.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class _Block(NamedTuple):
    first: int  # index of the block's first code
    values: Tensor  # -2 c', (k, D)
    square: Tensor  # ||c'||^2, (k,)


class CodeSearch:
    """A codebook prepared for searching; blocks of codes are made as they are needed."""

    def __init__(self, codebook: Tensor, precision: str) -> None:
        self.codebook, self.exact = codebook, precision == "exact"
        self.dtype = torch.float32 if backends.exact_float32_matmul() else torch.float64
        self.unit = torch.finfo(self.dtype).eps / 2
        size, dim = codebook.shape
        step = max(1, CODES // max(1, dim))
        self.starts = range(0, size, step)
        self.step = step
        self.mean = _mean(codebook.split(step)).to(self.dtype)
        largest = max(
            float((part.to(self.dtype) - self.mean).abs().max()) if dim else 0.0 for part in codebook.split(step)
        )
        self.scale = _power_of_two(largest)
        self._only = self._prepare(0) if len(self.starts) == 1 else None
        self._originals: Tensor | None = None
        norms = (torch.linalg.vector_norm(self._centred(part), dim=1).max() for part in codebook.split(step))
        self.radius = float(max(norms)) * 1.0001

    def __call__(self, tokens: Tensor) -> Tensor:
        """Nearest codes ``(n,)`` of ``tokens (n, D)``."""
        if len(tokens) == 0:
            return torch.zeros(0, dtype=torch.int64)
        if self._only is not None:
            rows = max(64, SCORES // self.step, SCORES // len(self.codebook))
            return torch.cat([self._search_one_block(part) for part in tokens.split(rows)])
        return self._search_blocks(tokens)

    def _prepare(self, first: int) -> _Block:
        codes = self.codebook[first : first + self.step]
        padded = len(codes) + -len(codes) % LANES  # with codes at infinity, never candidates
        values = torch.zeros(padded, codes.shape[1], dtype=self.dtype)
        square = torch.full((padded,), torch.inf, dtype=self.dtype)
        rows = max(1, PAIRS // max(1, codes.shape[1]))
        for start in range(0, len(codes), rows):
            exact = (codes[start : start + rows].double() - self.mean.double()).mul_(self.scale)
            where = slice(start, start + len(exact))
            values[where] = exact * -2
            square[where] = exact.square_().sum(1)
        return _Block(first, values, square)

    def _blocks(self) -> Iterator[_Block]:
        yield from [self._only] if self._only is not None else map(self._prepare, self.starts)

    def _centred(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).sub(self.mean).mul_(self.scale)

    def _centre(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """X' and twice the error bound E of its scores."""
        centred = self._centred(tokens)
        norm = torch.linalg.vector_norm(centred, dim=1).mul_(1.0001)
        relative = 1.01 * (tokens.shape[1] + 8) * self.unit
        error = relative * (2 * norm + self.radius) * self.radius + 2.0**-47 * (norm + self.radius).square()
        return centred, 2 * error

    def _search_one_block(self, tokens: Tensor) -> Tensor:
        assert self._only is not None
        centred, margin = self._centre(tokens)
        scores = torch.addmm(self._only.square, centred, self._only.values.T)
        if not self.exact:
            return scores.argmin(1)
        row, code, limit = _candidates(scores, margin)
        if len(row) == len(tokens) and bool(limit.isfinite().all()):
            return code
        return self._settle(tokens, row, code, limit)[0]

    def _search_blocks(self, tokens: Tensor) -> Tensor:
        """Block of codes after block, keeping each row's limit and nearest code so far."""
        centred, margin = self._centre(tokens)
        limits = torch.full_like(margin, torch.inf)
        codes = torch.zeros(len(tokens), dtype=torch.int64)
        nearest = torch.full((len(tokens),), torch.inf, dtype=torch.float64)
        for block in self._blocks():
            for rows in torch.arange(len(tokens)).split(max(64, SCORES // self.step)):
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                scores = torch.addmm(block.square, centred[part], block.values.T)
                row, code, limits[part] = _candidates(scores, margin[part], limits[part])
                found, distance = self._settle(tokens[part], row, code + block.first, limits[part], every=True)
                closer = distance < nearest[part]
                codes[part] = torch.where(closer, found, codes[part])
                nearest[part] = torch.where(closer, distance, nearest[part])
        lost = ~limits.isfinite()
        if bool(lost.any()):
            codes[lost] = nearest_code_reference(tokens[lost], self.codebook, "exact")
        return codes

    def _settle(
        self, tokens: Tensor, row: Tensor, code: Tensor, limit: Tensor, every: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Of each row's candidate pairs (sorted by row, then code) the nearest, and its distance.

        A row's only candidate is taken without a distance unless ``every``; rows without a finite limit see all codes.
        """
        num = len(tokens)
        best = torch.zeros(num, dtype=torch.int64)
        distance = torch.full((num,), torch.inf, dtype=torch.float64)
        count = torch.bincount(row, minlength=num)
        if not every:
            best[row] = code
            row, code = row[count[row] > 1], code[count[row] > 1]
        if len(row) > 8 * num:
            original = self._original(code)
            row, code = row[original], code[original]
        step = max(1, PAIRS // max(1, tokens.shape[1]))
        pairs = zip(row.split(step), code.split(step), strict=True)
        exact = torch.cat([squared_distance(tokens[r], self.codebook[c]) for r, c in pairs] or [distance[:0]])
        distance.scatter_reduce_(0, row, exact, "amin")
        wins = exact == distance[row]
        best[row[wins].flip(0)] = code[wins].flip(0)  # the first, lowest code is written last
        lost = ~limit.isfinite()
        if not every and bool(lost.any()):
            best[lost] = nearest_code_reference(tokens[lost], self.codebook, "exact")
        return best, distance

    def _original(self, code: Tensor) -> Tensor:
        """Whether each code is the first of its value: copies of a code never win and need no distance."""
        if self._originals is None:
            _, group = torch.unique(self.codebook, dim=0, return_inverse=True)
            order = torch.arange(len(group))
            first = torch.full_like(order, len(group)).scatter_reduce_(0, group, order, "amin")
            self._originals = first[group] == order
        return self._originals[code]


def _candidates(scores: Tensor, margin: Tensor, limit: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns, sorted, of the scores within ``margin`` of their row's smallest, or ``limit``; and which.

    Nearly all scores are read once only, in the minimum over the columns of each lane.
    """
    columns = scores.view(len(scores), -1, LANES)
    lanes = columns.amin(1)
    near = lanes.amin(1) + margin
    limit = near if limit is None else torch.minimum(near, limit)
    row, lane = (lanes <= limit[:, None]).nonzero(as_tuple=True)
    pair, group = (columns[row, :, lane] <= limit[row, None]).nonzero(as_tuple=True)
    row, code = row[pair], group * LANES + lane[pair]
    if len(row) > len(scores):
        order = (row * scores.shape[1] + code).argsort()
        row, code = row[order], code[order]
    return row, code, limit


def _mean(parts: tuple[Tensor, ...]) -> Tensor:
    total = torch.stack([part.double().sum(0) for part in parts]).sum(0)
    return total / sum(len(part) for part in parts)


def _power_of_two(largest: float) -> float:
    """The power of two that brings ``largest`` near 1, within what float32 can multiply by."""
    if not 0 < largest < float("inf"):
        return 1.0
    _, exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64))
    return 2.0 ** -max(-120, min(120, int(exponent)))
