"""Counting codes, and what lies beside them, for a model's tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dqcore.codebook import KMeans
from dqcore.errors import InputError, whole_given
from dqcore.ops import nearest_code
from dqcore.ops.checks import check_codebook, check_tensor
from dqcore.stream.checks import check_tokenizer, image_batches, whole_numbers
from dqcore.stream.tables import MOST_FACTOR, UNIT, CodeTables, check_numbers, frequencies

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

    Raises:
        InputError: There is no code, or ``number`` is not whole or below 1.
        TypeError: ``codebook`` is no tensor of floating-point numbers.
    """
    check_tensor("codebook", codebook, dim=2)
    if codebook.is_meta:
        raise InputError("codebook: expected a tensor with values, got one on the meta device")
    check_codebook(codebook, codebook.shape[1])
    whole_given(1, number=number)
    number = max(1, min(number, len(codebook) // 4))
    vectors = codebook.detach().float().cpu()
    distinct = len(torch.unique(vectors, dim=0))
    return nearest_code(vectors, KMeans()(vectors, min(number, distinct), vectors.shape[1]))


class CodeCounts:
    """How often granularities and codes occur, and beside what.

    Args:
        classes: Class of each code, int64, ``(K,)``.
        num_granularities: G.

    Raises:
        InputError: ``classes`` are no whole numbers of at least 0, or ``num_granularities`` is not in [1, 15].
        TypeError: ``classes`` are no tensor.
    """

    def __init__(self, classes: Tensor, num_granularities: int) -> None:
        classes = whole_numbers("classes", classes, dim=1, limit=1 << 31)
        whole_given(1, num_granularities=num_granularities)
        check_numbers(num_granularities, len(classes), "num_granularities, classes")
        size, number = len(classes), num_granularities
        self.classes, self.images = classes, 0
        self.grains = torch.zeros(number, dtype=torch.int64)
        self.codes = torch.zeros(number, size, dtype=torch.int64)
        self.grain_pairs = torch.zeros(number, number, dtype=torch.int64)
        self.code_pairs = torch.zeros(number, int(classes.max()) + 1, size, dtype=torch.int64)

    def add(self, codes: Tensor, grain: Tensor) -> None:
        """Count code maps ``(B, H, W)`` and grain maps ``(B, h, w)``, int64, on any device.

        Raises:
            InputError: Maps of another dtype, shape or range.
            TypeError: One is no tensor.
        """
        number, scale = len(self.grains), 1 << len(self.grains) - 1
        codes = whole_numbers("codes", codes, dim=3, limit=len(self.classes))
        grain = whole_numbers("grain", grain, dim=3, limit=number)
        batch, rows, columns = grain.shape
        if codes.shape != (batch, rows * scale, columns * scale):
            expected = f"code maps (B, {scale} h, {scale} w) of grain maps (B, h, w)"
            raise InputError(f"codes: expected {expected}, got {tuple(codes.shape)} and {tuple(grain.shape)}")
        self.images += batch
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
        TypeError: ``model`` is no tokenizer, or ``batches`` are no tensors.
    """
    check_tokenizer(model)
    weight = model.quantizer.codebook.weight
    counts = CodeCounts(code_classes(weight[: model.config.codebook_size]), model.config.num_granularities)
    for images in image_batches(batches):
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
