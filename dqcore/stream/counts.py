"""Counting codes, and what lies beside them, for a model's tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dqcore.codebook import KMeans
from dqcore.errors import InputError
from dqcore.ops import nearest_code
from dqcore.stream.tables import MOST_FACTOR, UNIT, CodeTables, frequencies

__all__ = ["CodeCounts", "code_classes", "fit_tables"]

_CLASSES = 64
_PRIOR = 20  # occurrences beside a class that the frequencies elsewhere weigh


def code_classes(codebook: Tensor, number: int = _CLASSES) -> Tensor:
    """Classes of similar codes: the nearest of the centres of k-means over the codebook.

    Args:
        codebook: ``(K, D)``.
        number: Classes, at most; there is one for four codes at most.

    Returns:
        int64, ``(K,)``.
    """
    number = max(1, min(number, len(codebook) // 4))
    vectors = codebook.detach().float().cpu()
    distinct = len(torch.unique(vectors, dim=0))
    return nearest_code(vectors, KMeans()(vectors, min(number, distinct), vectors.shape[1]))


class CodeCounts:
    """How often granularities and codes occur, and beside what.

    Args:
        classes: Class of each code, int64, ``(K,)``.
        num_granularities: G.
    """

    def __init__(self, classes: Tensor, num_granularities: int) -> None:
        size, number = len(classes), num_granularities
        self.classes, self.images = classes, 0
        self.grains = torch.zeros(number, dtype=torch.int64)
        self.codes = torch.zeros(number, size, dtype=torch.int64)
        self.grain_pairs = torch.zeros(number, number, dtype=torch.int64)
        self.code_pairs = torch.zeros(number, int(classes.max()) + 1, size, dtype=torch.int64)

    def add(self, codes: Tensor, grain: Tensor) -> None:
        """Count code maps ``(B, H, W)`` and grain maps ``(B, h, w)``, int64, on any device."""
        codes, grain = codes.cpu(), grain.cpu()
        self.images += len(codes)
        number, scale = len(self.grains), codes.shape[1] // grain.shape[1]
        self.grains += torch.bincount(grain.flatten(), minlength=number)
        for before, after in _neighbours(grain):
            self.grain_pairs.view(-1).add_(torch.bincount(before * number + after, minlength=number**2))
        fine = grain.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        for g in range(number):
            self._add_codes(codes, fine, g)

    def _add_codes(self, codes: Tensor, grain: Tensor, g: int) -> None:
        """Count the codes of granularity g, and the classes of those to the left and above that are known by then."""
        span, size = 1 << (len(self.grains) - 1 - g), self.codes.shape[1]
        here = (grain == g)[:, ::span, ::span]
        first = codes[:, ::span, ::span]
        self.codes[g] += torch.bincount(first[here], minlength=size)
        known = torch.where(grain <= g, self.classes[codes], -1)
        left, upper = known[:, ::span, span - 1 :: span], known[:, span - 1 :: span, ::span]
        for mask, beside, code in (
            (here[:, :, 1:], left[:, :, :-1], first[:, :, 1:]),
            (here[:, 1:], upper[:, :-1], first[:, 1:]),
        ):
            mask = mask & (beside >= 0)
            pairs = torch.bincount(beside[mask] * size + code[mask], minlength=self.code_pairs[g].numel())
            self.code_pairs[g].view(-1).add_(pairs)

    def tables(self) -> CodeTables:
        """The tables of what was counted."""
        grains, codes = frequencies(self.grains[None].double() + 0.5)[0], frequencies(self.codes.double() + 0.5)
        beside_grains = _factors(self.grain_pairs, grains)
        beside_codes = torch.stack([_factors(pairs, row) for pairs, row in zip(self.code_pairs, codes, strict=True)])
        return CodeTables(grains, codes, self.classes, beside_grains, beside_codes)


@torch.no_grad()
def fit_tables(model: Any, batches: Iterable[Tensor]) -> CodeTables:
    """The tables of a tokenizer, from the codes that it gives to images.

    Args:
        model: A tokenizer in evaluation mode.
        batches: Images ``(B, 3, H, W)`` in [-1, 1], of any sizes that are multiples of the coarsest stride.

    Raises:
        InputError: There are no images.
    """
    weight = model.quantizer.codebook.weight
    counts = CodeCounts(code_classes(weight[: model.config.codebook_size]), model.config.num_granularities)
    for images in batches:
        encoding = model.encode(images.to(weight.device))
        counts.add(encoding.codes, encoding.grain)
    if not counts.images:
        raise InputError("batches: expected at least one image, got none")
    return counts.tables()


def _neighbours(grain: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Granularities of regions and of those to their right, and of those below."""
    pairs = ((grain[:, :, :-1], grain[:, :, 1:]), (grain[:, :-1], grain[:, 1:]))
    return [(before.flatten(), after.flatten()) for before, after in pairs]


def _factors(pairs: Tensor, table: Tensor) -> Tensor:
    """How much more often numbers occur beside a class, ``(C, n)``, than the table says, ``(n,)``; in 256ths."""
    share = table.double() / table.sum()
    likely = pairs.double() + _PRIOR * share
    factor = likely / likely.sum(-1, keepdim=True) / share
    return (UNIT * factor).round().clamp(1, MOST_FACTOR).long()
