"""The way through a photo's maps, the same for the writer and the reader."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dqcore.stream.coder import Coder
from dqcore.stream.predictor import Predictor
from dqcore.stream.tables import CodeTables

__all__ = ["MapWalk", "code_predictor", "grain_predictor"]

Map = NDArray[np.int64]


class MapWalk:
    """Codes a grain map and a code map, number by number: with a writer it reads the maps, with a reader it fills them.

    Each number is predicted from its left and its upper neighbour, where they are known: they have a coarser
    granularity, or the same one and came before.

    Args:
        tables: What the maps are coded by.
        grain: Grain map ``(h, w)``.
        codes: Code map ``(H, W)`` on the finest grid.
    """

    def __init__(self, tables: CodeTables, grain: Map, codes: Map) -> None:
        self._tables, self.grain, self.codes = tables, grain, codes
        #: Class of each code, -1 where it is not known yet. Row 0 and column 0 lie outside the map.
        self._known = np.full((codes.shape[0] + 1, codes.shape[1] + 1), -1)
        self._classes, self._finest = tables.classes.tolist(), tables.num_granularities - 1

    def take_grain(self, coder: Coder) -> None:
        """The grain map, row by row."""
        known = np.full((self.grain.shape[0] + 1, self.grain.shape[1] + 1), -1)
        if self._tables.num_granularities == 1:
            self.grain[:] = 0
            return
        cells = [[y, x] for y in range(self.grain.shape[0]) for x in range(self.grain.shape[1])]
        classes = list(range(self._tables.num_granularities))
        _take(coder, grain_predictor(self._tables), self.grain, known, cells, 1, classes)

    def take_codes(self, coder: Coder, g: int) -> None:
        """The codes of granularity g, row by row of its grid."""
        if self._tables.codebook_size == 1:  # nothing is written, so a few bytes may stand for very many
            self.codes[(self.grain == g).repeat(1 << self._finest, 0).repeat(1 << self._finest, 1)] = 0
            return
        span = 1 << self._finest - g
        cells = np.argwhere((self.grain == g).repeat(1 << g, 0).repeat(1 << g, 1)) * span
        _take(coder, code_predictor(self._tables, g), self.codes, self._known, cells.tolist(), span, self._classes)


def _take(
    coder: Coder, predictor: Predictor, values: Map, known: Map, cells: list[list[int]], span: int, classes: list[int]
) -> None:
    """Code the values at some cells, each the upper left of a block of ``span`` by ``span``."""
    for y, x in cells:
        number = coder.code(predictor, known[y + 1, x], known[y, x + 1], int(values[y, x]))
        values[y : y + span, x : x + span] = number
        known[y + 1 : y + 1 + span, x + 1 : x + 1 + span] = classes[number]


def grain_predictor(tables: CodeTables) -> Predictor:
    """The predictor of granularities."""
    return Predictor(tables.grains.numpy(), tables.grain_factors.numpy())


def code_predictor(tables: CodeTables, g: int) -> Predictor:
    """The predictor of the codes of granularity g."""
    return Predictor(tables.codes[g].numpy(), tables.code_factors[g].numpy())
