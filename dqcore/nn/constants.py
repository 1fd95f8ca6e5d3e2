"""Tables that follow from a module's arguments, and that no state dict holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["KeepsTables", "device_of_tables"]


def device_of_tables(weights: torch.device) -> torch.device:
    """Where a module with these weights has its tables: beside them, but never on the meta device, without values."""
    return torch.device("cpu") if weights.type == "meta" else weights


class KeepsTables(nn.Module):
    """Its non-persistent buffers keep their values, whatever is done to its tensors.

    ``to_empty`` gives a module that was made on the meta device memory without values, for ``load_state_dict`` to fill.
    Nothing would fill these buffers, and what happened to lie in that memory was read as an index.
    """

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        names = self._non_persistent_buffers_set
        before = {name: self._buffers[name] for name in names}
        super()._apply(fn, recurse)
        for name, table in before.items():
            moved = self._buffers[name]
            if moved is None or table is None or moved is table or moved.is_meta or table.is_meta:
                continue
            if type(moved) is type(table):
                moved.copy_(table)
        return self
