"""``CodeSequence``: the codes of a batch as one packed coarse-to-fine sequence, without padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dqcore.drawing import as_html, code_figures, percentages, readable
from dqcore.errors import InputError, at_least

__all__ = ["CodeSequence", "Order", "check_order"]

Order = Literal["row-first", "region-first"]


@dataclass(frozen=True, eq=False, repr=False)
class CodeSequence:
    """The codes of ``B`` images, one image after the other; ``T`` codes in all.

    Within an image, coarse codes come before finer ones. Within a granularity, :func:`dqcore.pack_codes` takes codes in
    row-major order over that granularity's grid (``"row-first"``), or regions in raster order with the ``4**g`` codes
    of each in raster order (``"region-first"``). Sequences from elsewhere may have any order there: the positions say
    where each code belongs.

    ``torch.save`` takes it, and ``torch.load`` checks what a file holds, as the constructor does.

    Args:
        codes: Indices into the codebook, ``(T,)`` int64.
        positions: Index of each code in the row-major grid of its own granularity, ``(T,)`` int64,
            in ``[0, h * w * 4**g)``.
        grains: Granularity of each code, ``(T,)`` int64, in ``[0, num_granularities)``.
        cu_seqlens: Image ``i`` holds codes ``cu_seqlens[i]`` to ``cu_seqlens[i + 1]``; ``(B + 1,)`` int32 from 0 to T.
        region_grid: Regions ``(h, w)`` of an image.
        num_granularities: How many granularities there are, ``G``; the finest grid is ``h * 2**(G - 1)`` cells high.
        order: The order of codes within a granularity.

    Raises:
        TypeError: A field has the wrong type or dtype.
        ValueError: The fields do not fit each other. Only on the CPU are values of tensors checked.
    """

    codes: Tensor
    positions: Tensor
    grains: Tensor
    cu_seqlens: Tensor
    region_grid: tuple[int, int]
    num_granularities: int
    order: Order = "row-first"

    def __post_init__(self) -> None:
        check_order(self.order)
        self._check_grid()
        self._check_tensors()
        if self.codes.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_values()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, one.name) for one in fields(self))

    def _check_grid(self) -> None:
        rows, columns = self.region_grid
        object.__setattr__(self, "region_grid", (int(rows), int(columns)))
        if rows < 1 or columns < 1:
            raise InputError(f"region_grid: expected at least one region, got {self.region_grid}")
        at_least(1, num_granularities=self.num_granularities)

    def _check_tensors(self) -> None:
        for name in ("codes", "positions", "grains", "cu_seqlens"):
            tensor, dtype = getattr(self, name), torch.int32 if name == "cu_seqlens" else torch.int64
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{name}: expected a tensor of {dtype}, got {got}")
            if tensor.dim() != 1 or (dtype == torch.int64 and tensor.shape != self.codes.shape):
                raise InputError(f"{name}: expected one dimension, as long as codes, got shape {tuple(tensor.shape)}")
            if tensor.device != self.codes.device:
                raise InputError(f"{name}: expected device {self.codes.device}, as codes, got {tensor.device}")

    def _check_values(self) -> None:
        ends = self.cu_seqlens.tolist()
        if not ends or ends[0] != 0 or ends[-1] != len(self.codes) or ends != sorted(ends):
            raise InputError(f"cu_seqlens: expected to ascend from 0 to {len(self.codes)}, the number of codes")
        if len(self.codes) == 0:
            return
        low, high = (int(value) for value in self.grains.aminmax())
        if low < 0 or high >= self.num_granularities:
            raise InputError(f"grains: expected values in [0, {self.num_granularities}), got [{low}, {high}]")
        regions = self.region_grid[0] * self.region_grid[1]
        limits = regions << 2 * self.grains
        if bool(((self.positions < 0) | (self.positions >= limits)).any()):
            raise InputError(f"positions: expected values in [0, {regions} * 4**g) at granularity g")

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> Tensor:
        """Codes of each image, ``(B,)`` int32."""
        return self.cu_seqlens.diff()

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.codes.device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> CodeSequence:
        """The same sequence on ``device``; this object itself if it is there already.

        A copy to the CPU is waited for, whatever ``non_blocking`` says: values there are checked.
        """
        if torch.device(device) == self.device:
            return self
        non_blocking = non_blocking and torch.device(device).type != "cpu"
        return CodeSequence(
            self.codes.to(device, non_blocking=non_blocking),
            self.positions.to(device, non_blocking=non_blocking),
            self.grains.to(device, non_blocking=non_blocking),
            self.cu_seqlens.to(device, non_blocking=non_blocking),
            self.region_grid,
            self.num_granularities,
            self.order,
        )

    def where(self, mask: Tensor) -> CodeSequence:
        """The codes that lie in some regions, in their order: what a prior can complete, as its argument ``given``.

        Args:
            mask: Which regions, bool, ``(h, w)`` for all images or ``(B, h, w)``; on any device.

        Raises:
            TypeError: ``mask`` is no tensor of bool.
            InputError: It has another shape than ``region_grid``.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask: expected a tensor of torch.bool, got {got}")
        if tuple(mask.shape) not in (self.region_grid, (len(self), *self.region_grid)):
            expected = f"{self.region_grid} or {(len(self), *self.region_grid)}"
            raise InputError(f"mask: expected the shape {expected}, got {tuple(mask.shape)}")
        columns = self.region_grid[1] << self.grains  # of the grid of each code's granularity
        row, column = self.positions // columns >> self.grains, self.positions % columns >> self.grains
        image = torch.arange(len(self), device=self.device).repeat_interleave(self.lengths.long())
        keep = mask.to(self.device).expand(len(self), *self.region_grid)[image, row, column]
        ends = torch.bincount(image[keep], minlength=len(self)).cumsum(0).int()
        return CodeSequence(
            self.codes[keep],
            self.positions[keep],
            self.grains[keep],
            torch.cat([ends.new_zeros(1), ends]),
            self.region_grid,
            self.num_granularities,
            self.order,
        )

    def __getitem__(self, images: int | slice) -> CodeSequence:
        """The sequence of one image, or of a range of images; its codes are a view of this one's."""
        if isinstance(images, slice):
            start, stop, step = images.indices(len(self))
            if step != 1:
                raise InputError(f"images: expected a slice of step 1, got step {step}")
            stop = max(start, stop)
        else:
            if not hasattr(images, "__index__") or (isinstance(images, Tensor) and images.dim()):
                got = f"{type(images).__name__}: make a slice, or take images out before packing"
                raise TypeError(f"images: expected an index or a slice, got {got}")
            if not -len(self) <= images < len(self):
                raise IndexError(f"images: expected an index of {len(self)} images, got {images}")
            start = images % len(self)
            stop = start + 1
        ends = self.cu_seqlens[start : stop + 1]
        where = slice(*torch.stack([ends[0], ends[-1]]).tolist())
        tensors = (self.codes[where], self.positions[where], self.grains[where], ends - ends[0])
        return CodeSequence(*tensors, self.region_grid, self.num_granularities, self.order)

    def __iter__(self) -> Iterator[CodeSequence]:
        return (self[image] for image in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CodeSequence):
            return NotImplemented
        mine = (self.region_grid, self.num_granularities, self.order, self.device)
        return mine == (other.region_grid, other.num_granularities, other.order, other.device) and all(
            torch.equal(getattr(self, name), getattr(other, name))
            for name in ("codes", "positions", "grains", "cu_seqlens")
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        sizes = f"region_grid={self.region_grid}, num_granularities={self.num_granularities}, order={self.order!r}"
        plural = "s" if len(self) != 1 else ""
        return (
            f"CodeSequence({len(self.codes)} codes of {len(self)} image{plural}{self._shares()}, {sizes}, "
            f"device={str(self.device)!r})"
        )

    def _shares(self) -> str:
        """Shares of regions by granularity, in words; empty if they cannot be read."""
        grains = readable(self.grains)
        regions = len(self) * self.region_grid[0] * self.region_grid[1]
        if grains is None or regions == 0:
            return ""
        counts = [int((grains == g).sum()) / 4**g for g in range(self.num_granularities)]
        open_regions = (
            f", {percentages([regions - sum(counts)], regions)} without codes" if sum(counts) < regions else ""
        )
        return f", regions by granularity {percentages(counts, regions)}{open_regions}"

    def _repr_html_(self) -> str | None:
        fields = [readable(tensor) for tensor in (self.codes, self.positions, self.grains, self.cu_seqlens)]
        if any(values is None for values in fields) or len(self) == 0:
            return None
        codes, grains = self._painted(*fields)
        return as_html(repr(self), code_figures(codes, grains, self.num_granularities))

    def _painted(self, codes: Any, positions: Any, grains: Any, ends: Any) -> tuple[Any, Any]:
        """Code map and granularity of each cell of the first images, ``(B, H, W)``; -1 where there is no code."""
        import numpy as np

        (rows, columns), finest = self.region_grid, self.num_granularities - 1
        count = min(len(self), 4)
        painted = np.full((2, count, rows << finest, columns << finest), -1)
        image = np.repeat(np.arange(len(self)), np.diff(ends))
        for g in range(finest + 1):
            here = (grains == g) & (image < count)
            cells = np.full((count, (rows << g) * (columns << g)), -1)
            cells[image[here], positions[here]] = codes[here]
            side = 1 << (finest - g)
            blocks = cells.reshape(count, rows << g, columns << g).repeat(side, 1).repeat(side, 2)
            painted = np.where(blocks >= 0, np.stack([blocks, np.full_like(blocks, g)]), painted)
        return painted[0], painted[1]


def check_order(order: str) -> None:
    """Raise unless ``order`` is one that a sequence can have."""
    if order not in get_args(Order):
        raise InputError(f"order: expected {' or '.join(map(repr, get_args(Order)))}, got {order!r}")


torch.serialization.add_safe_globals([CodeSequence])
