"""A layer with a codebook that starts, learns and is set: the part of a quantizer that has state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dqcore.codebook import fused
from dqcore.codebook.draw import Looked
from dqcore.codebook.learning import Batch, Initialisation, Restart, first_codes, learn, place_in_batch
from dqcore.codebook.modules import Codebook
from dqcore.codebook.recompute import FirstPasses
from dqcore.distributed import from_first_process, num_processes
from dqcore.drawing import as_html, bars, means, readable
from dqcore.errors import InputError
from dqcore.metrics.coding import perplexity
from dqcore.ops import Lookup

__all__ = ["CodebookLayer"]

Layer = TypeVar("Layer", bound="CodebookLayer")

#: A code that no vector chose in this many training batches counts as unused.
USAGE_WINDOW = 100


class CodebookLayer(nn.Module):
    """Holds a codebook: starts it, lets it learn from batches, and gives out and takes its codes.

    Args:
        codebook: The codes and their statistics.
        initialisation: How it starts.
        restart: How its unused codes are revived; None for not at all.

    Attributes:
        initialised: Scalar uint8 buffer, 1 once the codebook has started; ``AveragedModel`` cannot average bool.
        frozen: Whether :meth:`freeze` stopped the learning.
    """

    initialised: Tensor

    def __init__(self, codebook: Codebook, initialisation: Initialisation, restart: Restart | None) -> None:
        super().__init__()
        self.codebook, self.initialisation, self.restart = codebook, initialisation, restart
        self.frozen = False
        self.register_buffer("initialised", torch.tensor(0, dtype=torch.uint8))
        self._ready, self._dtype = False, torch.get_default_dtype()
        self._first_passes = FirstPasses()
        self._apart = False  # whether each process may have drawn codes of its own
        self._accumulating = 0  # how many ``accumulate`` are open
        self._pending: Batch | None = None  # batches that wait for an update
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the codebook anew: from random codes, or from the next training batch.

        ``to_empty`` calls this when the layer leaves the meta device. The projections have a ``reset_parameters`` each.
        """
        self.codebook.reset_parameters()
        self._ready, self._pending = False, None
        with torch.no_grad():
            self.initialised.zero_()
        if not self.initialisation.needs_data:
            self._start(self.initialisation(None, self.codebook.size, self.codebook.dim))

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
        self._accumulating += 1
        try:
            yield
        except BaseException:
            self._pending = None
            raise
        finally:
            self._accumulating -= 1
        if self._accumulating == 0 and self._pending is not None:
            batch, self._pending = self._pending, None
            learn(self.codebook, batch, self.restart)

    @property
    def codes(self) -> Tensor:
        """The codes ``(K, D)``. Setting them restarts their statistics, as if one vector had chosen each.

        Change them by ``quantizer.codes = values``. An EMA codebook loses what is written into them in place: its next
        update computes the codes from its moving averages.
        """
        return self.codebook.codes

    @codes.setter
    def codes(self, codes: Tensor) -> None:
        expected = (self.codebook.size, self.codebook.dim)
        if not isinstance(codes, Tensor) or tuple(codes.shape) != expected:
            got = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
            raise InputError(f"codes: expected a {expected} tensor, got {got}")
        if not bool(codes.isfinite().all()):
            raise InputError("codes: expected finite values")
        self.codebook.idle.zero_()
        self._start(codes)

    @property
    def started(self) -> bool:
        """Whether it has codes: from its first training batch, or written into the codebook, as by another layer."""
        return self._ready or bool(self.initialised) or bool(self.codebook.codes.any())

    @property
    def usage(self) -> float:
        """Share of codes that some vector chose in the last 100 training batches, in [0, 1]."""
        return float((self.codebook.idle < USAGE_WINDOW).float().mean())

    @property
    def perplexity(self) -> float:
        """:func:`dqcore.metrics.perplexity` of the moving averages of code frequencies, in [1, K]."""
        return perplexity(self.codebook.cluster_size)

    def _repr_html_(self) -> str | None:
        """How often the codes are chosen, the most frequent one first, as bars; many codes share a bar."""
        frequency = readable(self.codebook.cluster_size)
        if frequency is None:
            return None
        chart = bars(means(sorted(frequency.tolist(), reverse=True), 64))
        about = f"{100 * self.usage:.0f} % of the codes chosen in the last {USAGE_WINDOW} training batches"
        return as_html(repr(self), extra=f"{chart}<br>{about}; bars: how often, the most frequent codes first")

    def _check_started(self) -> None:
        if not self._ready and not torch.compiler.is_compiling():
            self._ready = self.started
        if not self._ready:
            raise InputError(
                "codebook: it starts from the first training batch, and there was none; train, call "
                "initialise(features), set codes, or load a trained state"
            )

    def _may_learn(self, learn: bool) -> bool:
        """Whether a pass learns. Within a ``torch.func`` transform none can: its tensors must not be kept after it."""
        learn = learn and self.training
        if learn and not self.frozen and torch._C._are_functorch_transforms_active():
            raise InputError("learn: no codebook learns within torch.func transforms; call eval(), or pass learn=False")
        return learn

    def _initialise(
        self, maps: list[Tensor], grain: Tensor, bad_cells: Tensor | None, learn: bool = False, force: bool = False
    ) -> None:
        """Start the codebook from these features unless it has started; ``force`` starts it again."""
        compiling = torch.compiler.is_compiling()
        if not force and not compiling and self.started:
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
            if codes is not None and compiling and not force:  # a loaded codebook may have started already
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

    @torch.no_grad()
    def _start(self, codes: Tensor) -> None:
        """Set the codes, and begin their statistics anew."""
        self._pending = None  # what was gathered belongs to the old codes
        weight = self.codebook.weight
        everything = torch.ones(self.codebook.size, dtype=torch.bool, device=weight.device)
        self.codebook.replace(codes.detach().to(weight.device, weight.dtype), everything)
        self.initialised.fill_(1)
        self._ready = True

    @property
    def _learns_at_once(self) -> bool:
        """Whether each batch makes an update of its own, rather than several batches one together."""
        return self._pending is None and not self._accumulating and self.codebook.every == 1

    @torch.no_grad()
    def _learn(self, maps: list[Tensor], grain: Tensor, lookup: Lookup) -> None:
        """Update the codebook by a batch, or keep its statistics for an update by several."""
        assert lookup.statistics is not None
        if self._learns_at_once and fused.can_update(self.codebook, self.restart, maps, lookup):
            fused.update(self.codebook, self.restart, maps, grain, lookup)
            return
        earlier = self._pending
        source: Looked | None = None
        cells: Tensor | int = 0
        if self.restart is not None:
            looked = Looked(maps, grain, lookup.codes, lookup.error)
            source, cells = place_in_batch(looked, 0 if earlier is None else earlier.cells)
        batch = Batch(*lookup.statistics, source, cells)
        is_due = not self._accumulating and batch.number + (earlier.number if earlier else 0) >= self.codebook.every
        if earlier is not None or not is_due:
            batch = batch.after(earlier, self.codebook)
        self._pending = None if is_due else batch
        if is_due:
            learn(self.codebook, batch, self.restart)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        alone = prefix + "codebook.weight" in state_dict and prefix + "initialised" not in state_dict
        if alone and not self.initialised.is_meta:  # codes from elsewhere: the first batch must not replace them
            with torch.no_grad():
                self.initialised.fill_(1)
        self._pending, self._apart = None, False
        self._ready = not self.initialised.is_meta and bool(self.initialised)

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle made within :meth:`accumulate` has left it, without what was gathered."""
        state = self.__dict__.copy()
        if self._accumulating:
            state |= {"_accumulating": 0, "_pending": None}
        return state

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> CodebookLayer:
        was_meta = self.codebook.weight.is_meta
        self._dtype = fn(torch.empty(0, dtype=self._dtype)).dtype
        super()._apply(fn, *args, **kwargs)
        if was_meta and not self.codebook.weight.is_meta:
            self.reset_parameters()
            self._apart = True
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        # A module registers every parameter that is assigned to it; codes are copied.
        super().__setattr__(name, value.detach() if name == "codes" and isinstance(value, Tensor) else value)
