"""A layer whose codebook starts and learns: the part of a quantizer that has state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from dqcore.backends import has_values
from dqcore.codebook import fused
from dqcore.codebook.draw import Looked
from dqcore.codebook.holder import CodebookHolder
from dqcore.codebook.learning import Initialisation, Restart, first_codes, learn
from dqcore.codebook.modules import Codebook
from dqcore.distributed import from_first_process, num_processes
from dqcore.ops import Lookup

__all__ = ["CodebookLayer"]

Layer = TypeVar("Layer", bound="CodebookLayer")


class CodebookLayer(CodebookHolder):
    """Starts its codebook, and lets it learn from training batches.

    Args:
        codebook: The codes and their statistics.
        initialisation: How it starts.
        restart: How its unused codes are revived; None for not at all.

    Attributes:
        frozen: Whether :meth:`freeze` stopped the learning.
    """

    def __init__(self, codebook: Codebook, initialisation: Initialisation, restart: Restart | None) -> None:
        super().__init__(codebook, initialisation, restart)
        self.frozen = False

    def freeze(self: Layer, frozen: bool = True) -> Layer:
        """Stop, or resume, learning the codebook. The encoder's commitment loss stays as it is."""
        self.frozen = frozen
        return self

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Learn from all batches that pass within this context as from one batch, at its end.

        ``with quantizer.accumulate():`` around the forward and backward passes of the parts of a batch gives the
        codebook of the whole batch. An exception forgets what was gathered. :class:`EMA(every=n) <dqcore.codebook.EMA>`
        does the same for training loops that cannot be wrapped in a context.
        """
        gathering = self._gathering
        gathering.open += 1
        try:
            yield
        except BaseException:
            gathering.batch = None
            raise
        finally:
            gathering.open -= 1
        if not gathering.open and gathering.batch is not None:
            batch, gathering.batch = gathering.batch, None
            learn(self.codebook, batch, self.restart)

    def _initialise(
        self, maps: list[Tensor], grain: Tensor, bad_cells: Tensor | None, learn: bool = False, force: bool = False
    ) -> None:
        """Start the codebook from these features unless it has started; ``force`` starts it again."""
        known = has_values(maps[-1])
        if not force and known and self.started:
            if not self.initialised:
                self.initialised.fill_(1)
            self._ready = True
            return
        if not (learn or force):
            self._check_started()
        if maps[-1].numel() == 0 and num_processes() == 1:
            return
        with torch.no_grad():
            codes = first_codes(self.initialisation, maps, grain, bad_cells, self.codebook.size)
            if codes is not None and not known and not force:  # a loaded codebook may have started already
                codes = torch.where(self.initialised.bool(), self.codebook.codes, codes)
            if codes is not None:
                self._start(codes)

    @torch.no_grad()
    def _agree(self) -> None:
        """Take the first process's codes, where each drew its own as the layer left the meta device."""
        self._apart = False
        if num_processes() > 1 and not isinstance(self.codebook.weight, nn.Parameter):
            for values in self.codebook.buffers():  # statistics too, which may have been loaded in place
                values.copy_(from_first_process(values))

    @property
    def _learns_at_once(self) -> bool:
        """Whether each batch makes an update of its own, rather than several batches one together."""
        gathering = self._gathering
        return gathering.batch is None and not gathering.open and self.codebook.every == 1

    @torch.no_grad()
    def _learn(self, maps: list[Tensor], grain: Tensor, lookup: Lookup) -> None:
        """Learn from a batch: by one op, straight from its maps, where that can be; else as :func:`learn` does."""
        assert lookup.statistics is not None
        if self._learns_at_once and fused.can_update(self.codebook, self.restart, maps, lookup):
            fused.update(self.codebook, self.restart, maps, grain, lookup)
            return
        looked = None if self.restart is None else Looked(maps, grain, lookup.codes, lookup.error)
        if (batch := self._gathering.add(self.codebook, lookup.statistics, looked)) is not None:
            learn(self.codebook, batch, self.restart)
