"""Modules that hold the codes of a quantizer and the statistics that they learn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dqcore.backends import host_knows
from dqcore.errors import InputError
from dqcore.ops.reference.codebook_update import move_averages, smoothed

__all__ = ["Codebook", "EMACodebook", "GradientCodebook", "count_numbers"]


class Codebook(nn.Module):
    """K codes and one padding row, with the statistics that every way of learning keeps.

    Codes and statistics are float32 at least: ``.to(bfloat16)`` and ``.half()`` leave them as they are, because an
    average that moves by one per cent a step stands still in eight bits.

    Attributes:
        weight: ``(K + 1, D)`` float32; a buffer or a parameter, as the subclass says. Row K is the padding row: it is
            never searched and never updated. Index K marks a hole in a partial code map, and decodes to this row.
        cluster_size: ``(K,)`` float32, moving average of how many vectors of a batch chose each code; starts at 1.
        idle: ``(K,)`` int64, training batches since each code was last chosen.
        every: Training batches that make one update.
    """

    weight: Tensor
    cluster_size: Tensor
    idle: Tensor
    every: int = 1

    def __init__(self, size: int, dim: int, decay: float) -> None:
        super().__init__()
        self.size, self.dim, self.decay = size, dim, decay
        # A model may be built while the default is bfloat16, as transformers does for ``dtype=``.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self._register_weight(torch.zeros(size + 1, dim, dtype=dtype))
        self.register_buffer("cluster_size", torch.ones(size, dtype=dtype))
        self.register_buffer("idle", torch.zeros(size, dtype=torch.int64))

    def _register_weight(self, weight: Tensor) -> None:
        self.register_buffer("weight", weight)

    @property
    def rows(self) -> Tensor:
        """Codes and padding row, ``(K + 1, D)``."""
        return self.weight

    @property
    def codes(self) -> Tensor:
        """The codes alone, ``(K, D)``."""
        rows = self.rows
        if rows.shape[0] != self.size + 1:  # a larger weight put in its place would be searched in part, in silence
            raise InputError(
                f"codebook.weight: expected {self.size + 1} rows, {self.size} codes and the padding row, got "
                f"{rows.shape[0]}; for another number of codes make a new layer and set its codes"
            )
        return rows[: self.size]

    def _written(self) -> Tensor:
        """The codes, to write to."""
        if "parametrizations" in self._modules:
            raise InputError(
                "codebook.weight: a parametrization computes it anew whenever it is read, so what is written to it is "
                "lost; a codebook that may be parametrized has learning=Gradient() and restart=None"
            )
        return self.codes

    def update(self, counts: Tensor, sums: Tensor) -> None:
        """Take in one batch's counts ``(K,)`` and vector sums ``(K, D)``. A batch without vectors changes nothing."""
        self._average(counts.to(self.cluster_size.dtype))

    def _average(self, counts: Tensor) -> Tensor:
        """Move the averages of the counts; return the share of the new batch in an average, 0 for an empty batch."""
        return move_averages(self.cluster_size, self.idle, counts, self.decay)

    def replace(self, codes: Tensor, replaced: Tensor) -> None:
        """Set the codes marked in ``replaced (K,)`` to the rows of ``codes (K, D)``, as if each had one vector."""
        with torch.no_grad():
            for rows in self._rows_of_codes():
                rows.copy_(torch.where(replaced[:, None], codes, rows))
            self.cluster_size.masked_fill_(replaced, 1)

    def replace_rows(self, codes: Tensor, rows: Tensor) -> None:
        """The same for the codes with these numbers ``(n,)``, none twice, and ``codes (n, D)``."""
        with torch.no_grad():
            for values in self._rows_of_codes():
                values.index_copy_(0, rows, codes.to(values.dtype))
            self.cluster_size.index_fill_(0, rows, 1)

    def _rows_of_codes(self) -> list[Tensor]:
        """What has a row for each code that is set with it, ``(K, D)`` each."""
        return [self._written()]

    def reset_parameters(self) -> None:
        """Forget codes, padding row and statistics: all codes 0, each as if one vector had chosen it."""
        with torch.no_grad():
            self.weight.zero_()
            self.cluster_size.fill_(1)
            self.idle.zero_()

    def loss(self, codes: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """A term whose gradient pulls codes to their vectors; its value means nothing. 0 if codes have no gradient.

        Args:
            codes: ``(K, D)``, the codes, with gradient.
            counts: ``(K,)``, how many vectors chose each code.
            sums: ``(K, D)``, the sum of the vectors that chose each code.
        """
        return counts.new_zeros(())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take codes and statistics of a narrower dtype as float32; ``assign=True`` would else keep their dtype."""
        for name, value in state_dict.items():  # torch made the mapping for this call
            if name.startswith(prefix) and isinstance(value, Tensor) and _is_narrow(value):
                state_dict[name] = value.float()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Codebook:
        """Move to another device or dtype, but keep float32 where ``fn`` would give a narrower dtype."""

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device, torch.float32) if _is_narrow(moved) else moved

        return super()._apply(keep, *args, **kwargs)


class EMACodebook(Codebook):
    """Codes are the moving averages of the vectors that chose them (as in the authors' code; no gradient).

    The codes are state as the statistics of a BatchNorm are: ``weight`` is a buffer, which no optimiser, weight decay
    or sharding of parameters touches.

    Attributes:
        embed_sum: ``(K, D)`` float32, moving average of the vector sums; starts equal to the codes, as if each had been
            chosen by one vector.
    """

    embed_sum: Tensor

    def __init__(self, size: int, dim: int, decay: float, eps: float, every: int = 1) -> None:
        super().__init__(size, dim, decay)
        self.eps, self.every = eps, every
        self.register_buffer("embed_sum", torch.zeros(size, dim, dtype=self.weight.dtype))

    def update(self, counts: Tensor, sums: Tensor) -> None:
        """Move the averages, then set every code to its sum over its size, which ``eps`` smooths (Laplace)."""
        codes = self._written()
        share = self._average(counts.to(self.cluster_size.dtype))
        self.embed_sum.lerp_(sums.to(self.embed_sum.dtype), share.to(self.embed_sum.dtype))
        size = smoothed(self.cluster_size, self.eps)
        if not host_knows(share):
            codes.copy_(torch.where(share > 0, self.embed_sum / size[:, None], codes))
        elif share > 0:
            torch.div(self.embed_sum, size[:, None], out=codes)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load; codes that come without their averages, as those of ``Gradient()`` do, get averages that fit them."""
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        alone = prefix + "weight" in state_dict and prefix + "embed_sum" not in state_dict
        if alone and not (self.weight.is_meta or self.embed_sum.is_meta):
            # From other averages the next update would compute the old codes again.
            with torch.no_grad():
                self.embed_sum.copy_(self.codes * smoothed(self.cluster_size, self.eps)[:, None])

    def _rows_of_codes(self) -> list[Tensor]:
        # The averages start anew with the codes; the next update would else bring the old codes back.
        return [self._written(), self.embed_sum]

    def reset_parameters(self) -> None:
        """Forget the codes and the statistics."""
        super().reset_parameters()
        self.embed_sum.zero_()


class GradientCodebook(Codebook):
    """Codes are trained by the optimiser through ``sum_i ||sg(z_i) - e_k(i)||^2``; ``weight`` is a parameter."""

    def _register_weight(self, weight: Tensor) -> None:
        self.weight = nn.Parameter(weight)

    @property
    def rows(self) -> Tensor:
        """Codes and padding row; outside a forward pass under FSDP a copy, for which every process must ask."""
        weight: Any = self.weight
        return weight.full_tensor() if hasattr(weight, "full_tensor") else weight

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "weight" and hasattr(value, "device_mesh"):
            self.__dict__["_shards"] = value  # FSDP puts the whole weight in its place during a forward pass

    def replace(self, codes: Tensor, replaced: Tensor) -> None:
        """Replace codes; where FSDP shards the weight, in this process's shard too, which outlives the forward pass."""
        shards = self.__dict__.get("_shards")
        if shards is None or self.weight is not shards:
            super().replace(codes, replaced)
        if shards is None:
            return
        from torch.distributed.tensor import distribute_tensor

        def part(rows: Tensor) -> Tensor:
            rows = torch.cat([rows, rows.new_zeros(1, self.dim)])  # the padding row stays
            return distribute_tensor(rows, shards.device_mesh, shards.placements, src_data_rank=None).to_local()

        self.cluster_size.masked_fill_(replaced, 1)
        local = shards.to_local().detach()
        local.copy_(torch.where(part(replaced[:, None].expand(-1, self.dim)), part(codes.to(local.dtype)), local))

    def replace_rows(self, codes: Tensor, rows: Tensor) -> None:
        """The same for the codes with these numbers."""
        if "_shards" not in self.__dict__:
            return super().replace_rows(codes, rows)
        whole = torch.zeros_like(self.codes).index_copy(0, rows, codes)
        self.replace(whole, torch.zeros(self.size, dtype=torch.bool).index_fill(0, rows, True))

    def loss(self, codes: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """A term with the squared error's gradient to ``codes``, which needs the counts and sums alone."""
        pull = 2 * (counts[:, None] * codes - sums).detach()
        return (pull * codes).sum()


def _is_narrow(values: Tensor) -> bool:
    return values.is_floating_point() and torch.finfo(values.dtype).bits < 32


def count_numbers(model: nn.Module) -> tuple[int, int]:
    """How many numbers a model's parameters have, and how many its codebooks that are state and not parameters."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, sum(book.weight.numel() for book in model.modules() if isinstance(book, EMACodebook))
