"""Batches that a codebook learns from together: those of ``accumulate``, and those of ``EMA(every=n)``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dqcore.codebook.draw import Looked
from dqcore.codebook.learning import BatchStatistics, place_in_batch
from dqcore.codebook.modules import Codebook
from dqcore.ops import CodeSums

__all__ = ["Gathering"]


class Gathering:
    """What a layer has gathered for the next update of its codebook.

    A copy or a pickle that is made within ``accumulate`` has left it, and is empty.

    Attributes:
        open: How many ``accumulate`` are open; there is no update before all are closed.
        batch: The batches so far as one; None for none.
    """

    def __init__(self) -> None:
        self.open = 0
        self.batch: BatchStatistics | None = None

    def add(self, codebook: Codebook, statistics: CodeSums, looked: Looked | None) -> BatchStatistics | None:
        """Take in a batch.

        Args:
            codebook: The codebook.
            statistics: How many vectors chose each code, and their sums.
            looked: What vectors are drawn from, to revive codes; None if none are revived.

        Returns:
            All batches since the last update, as one, if it is time for an update; None if they are to wait.
        """
        earlier = self.batch
        cells: Tensor | int = 0
        if looked is not None:
            looked, cells = place_in_batch(looked, 0 if earlier is None else earlier.cells)
        batch = BatchStatistics(*statistics, looked, cells)
        number = batch.number + (0 if earlier is None else earlier.number)
        is_due = not self.open and number >= codebook.every
        if is_due and earlier is None:
            return batch  # alone, so its maps are at hand to draw from
        batch = batch.after(earlier, codebook)
        self.batch = None if is_due else batch
        return batch if is_due else None

    def __getstate__(self) -> dict[str, Any]:
        return {"open": 0, "batch": None if self.open else self.batch}
