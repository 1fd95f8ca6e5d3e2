"""A layer that holds a codebook: what a quantizer's codes are, whatever it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dqcore.backends import has_values
from dqcore.codebook.gathering import Gathering
from dqcore.codebook.learning import Initialisation, Restart
from dqcore.codebook.modules import Codebook
from dqcore.drawing import as_html, bars, means, readable
from dqcore.errors import InputError
from dqcore.metrics.coding import perplexity

__all__ = ["CodebookHolder"]

#: A code that no vector chose in this many training batches counts as unused.
USAGE_WINDOW = 100


class CodebookHolder(nn.Module):
    """Gives out its codes and takes others, says how they are used, and keeps them when it is moved, cast or loaded.

    Args:
        codebook: The codes and their statistics.
        initialisation: How it starts.
        restart: How its unused codes are revived; None for not at all.

    Attributes:
        initialised: Scalar uint8 buffer, 1 once the codebook has started; ``AveragedModel`` cannot average bool.
    """

    initialised: Tensor

    def __init__(self, codebook: Codebook, initialisation: Initialisation, restart: Restart | None) -> None:
        super().__init__()
        self.codebook, self.initialisation, self.restart = codebook, initialisation, restart
        self.register_buffer("initialised", torch.tensor(0, dtype=torch.uint8))
        self._ready, self._dtype = False, torch.get_default_dtype()
        self._apart = False  # whether each process may have drawn codes of its own
        self._gathering = Gathering()  # what waits for an update of these codes
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the codebook anew: from random codes, or from the next training batch.

        ``to_empty`` calls this when the layer leaves the meta device. The projections have a ``reset_parameters`` each.
        """
        self.codebook.reset_parameters()
        self._ready, self._gathering.batch = False, None
        with torch.no_grad():
            self.initialised.zero_()
        if not self.initialisation.needs_data:
            self._start(self.initialisation(None, self.codebook.size, self.codebook.dim))

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
        if not self._ready and has_values(self.initialised):
            self._ready = self.started
        if not self._ready:
            raise InputError(
                "codebook: it starts from the first training batch, and there was none; train before evaluating "
                "(Lightning: num_sanity_val_steps=0), call initialise(features), set codes, or load a trained state"
            )

    @torch.no_grad()
    def _start(self, codes: Tensor) -> None:
        """Set the codes, and begin their statistics anew."""
        self._gathering.batch = None  # what was gathered belongs to the old codes
        weight = self.codebook.weight
        everything = torch.ones(self.codebook.size, dtype=torch.bool, device=weight.device)
        self.codebook.replace(codes.detach().to(weight.device, weight.dtype), everything)
        self.initialised.fill_(1)
        self._ready |= has_values(weight) or torch.compiler.is_compiling()  # fake codes start nothing

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        alone = prefix + "codebook.weight" in state_dict and prefix + "initialised" not in state_dict
        if alone and not self.initialised.is_meta:  # codes from elsewhere: the first batch must not replace them
            with torch.no_grad():
                self.initialised.fill_(1)
        self._gathering.batch, self._apart = None, False
        self._ready = not self.initialised.is_meta and bool(self.initialised)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> CodebookHolder:
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
