"""Exact nearest codes at the speed of a blocked float32 product.

Scores ``||c'||^2 - 2 x'.c'`` come from one matrix product for each block of vectors and codes. Here x' and c' are
vectors and codes scaled by a power of two, less the codebook's mean; neither changes which code is nearest. With unit
roundoff u, ``C = max ||c'||`` and any order of summation, a computed score is off by at most

    E = 1.01 (D + 8) u (2 ||x'|| C + C^2) + 2^-47 (||x'|| + C)^2.

D + 8 covers the product, the centring of both factors, ``||c'||^2`` and the last addition; the second term covers the
rounding of the float64 distance that defines the answer. So the score of the nearest code lies within 2E of the
smallest score. A vector with one such *candidate* is settled; for the others the candidates' float64 distances are
compared.

Where E itself is not finite the scores prove nothing. The vector has a NaN or an infinity, or it is too far from the
codes for float32. Such a *strange* vector has no candidates; if it is finite, it is compared with all codes. Codes with
a NaN or an infinity are left out of mean and C, and their score is infinite, so that they are never candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.ops.cpu.prepared_codes import FewVectorsCodes, PreparedCodes
from dqcore.ops.reference.nearest_code import nearest_code_reference, squared_distance

__all__ = ["CODES", "ProductSearch", "finite"]

CODES = 2**21  # elements of a block of codes: 8 MB
SCORES = 2**20  # elements of a block of scores: 4 MB
PAIRS = 2**18  # elements of a block in float64: 2 MB
LANES = 32  # a vector's scores are seen as a matrix with this many columns; see _candidates


class ProductSearch:
    """A codebook prepared for float32 products, once if it is of one block, of several blocks at each search.

    Args:
        codebook: ``(K, D)``.
        precision: ``"exact"``, or ``"fast"`` for the smallest score.
        few: Whether only a few vectors will be searched for.
    """

    def __init__(self, codebook: Tensor, precision: str, *, few: bool) -> None:
        self.codebook, self.exact = codebook, precision == "exact"
        self.prepared: PreparedCodes | FewVectorsCodes = self._prepare(few)
        single = len(self.prepared.starts) == 1 and not self.prepared.empty
        self._only = self.prepared.block(0) if single else None
        self._originals: Tensor | None = None

    def _prepare(self, few: bool) -> PreparedCodes | FewVectorsCodes:
        if few and 0 < self.codebook.numel() <= CODES:
            codes = FewVectorsCodes(self.codebook, LANES)
            if codes.usable:
                return codes
        return PreparedCodes(self.codebook, max(1, CODES // max(1, self.codebook.shape[1])), LANES)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Nearest codes ``(n,)`` of ``vectors (n, D)``."""
        if len(vectors) == 0 or self.prepared.empty:
            return torch.full((len(vectors),), -1)
        if self._only is not None:
            rows = max(64, SCORES // self.prepared.block_size, SCORES // len(self.codebook))
            return torch.cat([self._search_one_block(part) for part in vectors.split(rows)])
        return self._search_blocks(vectors)

    def _search_one_block(self, vectors: Tensor) -> Tensor:
        """Nearest codes where one block holds the whole codebook."""
        assert self._only is not None
        centred, margin, strange = self.prepared.centre(vectors)
        scores = torch.addmm(self._only.square, centred, self._only.values.T)
        if not self.exact:
            return self._look_up_strange(vectors, strange, scores.argmin(1))
        row, code, _ = _candidates(scores, margin)
        if strange is not None and len(row) + int(strange.sum()) == len(vectors):
            code = torch.zeros(len(vectors), dtype=torch.int64).index_copy_(0, row, code)
        elif strange is not None or len(row) != len(vectors):
            code, _ = self._settle(vectors, row, code)
        return self._look_up_strange(vectors, strange, code)

    def _search_blocks(self, vectors: Tensor) -> Tensor:
        """One block of codes after the other; each vector's limit and nearest code so far are kept."""
        centred, margin, strange = self.prepared.centre(vectors)
        limits = torch.full_like(margin, torch.finfo(margin.dtype).max)  # less than the score of a code left out
        codes = torch.zeros(len(vectors), dtype=torch.int64)
        nearest = torch.full((len(vectors),), torch.inf, dtype=torch.float64)
        for block in map(self.prepared.block, self.prepared.starts):
            for rows in torch.arange(len(vectors)).split(max(64, SCORES // self.prepared.block_size)):
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                scores = torch.addmm(block.square, centred[part], block.values.T)
                row, code, limits[part] = _candidates(scores, margin[part], limits[part])
                found, distance = self._settle(vectors[part], row, code + block.first, every=True)
                closer = distance < nearest[part]
                codes[part] = torch.where(closer, found, codes[part])
                nearest[part] = torch.where(closer, distance, nearest[part])
        return self._look_up_strange(vectors, strange, codes)

    def _look_up_strange(self, vectors: Tensor, strange: Tensor | None, codes: Tensor) -> Tensor:
        """Fill in the ``codes (n,)`` of the ``strange (n,)`` vectors: -1 if not finite, else the reference's."""
        if strange is not None:
            codes = codes.masked_fill(strange, -1)
            rows = strange.nonzero()[:, 0]
            rows = rows[finite(vectors[rows])]
            if len(rows):
                codes[rows] = nearest_code_reference(vectors[rows], self.codebook, "exact")
        return codes

    def _settle(self, vectors: Tensor, row: Tensor, code: Tensor, *, every: bool = False) -> tuple[Tensor, Tensor]:
        """The nearest candidate of each vector, and its distance; 0 and infinity where there is no candidate.

        Args:
            vectors: ``(n, D)``.
            row: Which vector each candidate belongs to.
            code: The candidates' codes; pairs of row and code ascend.
            every: Also compute the distance of a vector's only candidate, which otherwise wins without one.
        """
        num = len(vectors)
        best = torch.zeros(num, dtype=torch.int64)
        distance = torch.full((num,), torch.inf, dtype=torch.float64)
        count = torch.bincount(row, minlength=num)
        if not every:
            best[row] = code
            row, code = row[count[row] > 1], code[count[row] > 1]
        if len(row) > 8 * num:
            original = self._original(code)
            row, code = row[original], code[original]
        size = max(1, PAIRS // max(1, vectors.shape[1]))
        pairs = zip(row.split(size), code.split(size), strict=True)
        exact = torch.cat([squared_distance(vectors[r], self.codebook[c]) for r, c in pairs] or [distance[:0]])
        distance.scatter_reduce_(0, row, exact, "amin")
        wins = exact == distance[row]
        best[row[wins].flip(0)] = code[wins].flip(0)  # the first, lowest code is written last
        return best, distance

    def _original(self, code: Tensor) -> Tensor:
        """Whether each code is the first of those with its value. Later copies never win, so they need no distance."""
        if self._originals is None:
            _, group = torch.unique(self.codebook, dim=0, return_inverse=True)
            order = torch.arange(len(group))
            first = torch.full_like(order, len(group)).scatter_reduce_(0, group, order, "amin")
            self._originals = first[group] == order
        return self._originals[code]


def finite(vectors: Tensor) -> Tensor:
    """Which vectors have neither a NaN nor an infinity, ``(n,)``: no sum of float32's numbers overflows float64."""
    return vectors.sum(1, dtype=torch.float64).isfinite()


def _candidates(scores: Tensor, margin: Tensor, limit: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The scores that are at most their row's smallest plus ``margin``, and at most ``limit`` where that is given.

    Each row of ``scores (n, k)`` is seen as a matrix of LANES columns. Its column minima show which columns hold
    candidates, so that only those are read again.

    Returns:
        Row and column of each such score, ascending, and the new limit of each row.
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
