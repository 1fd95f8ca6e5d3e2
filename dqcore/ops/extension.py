"""How an op calls csrc: with pointers, sizes, and the number of threads or the CUDA stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dqcore import backends
from dqcore.codes import check_order
from dqcore.errors import InputError
from dqcore.ops.checks import check_cells, check_same_device, check_tensor
from dqcore.ops.layout import check_total

__all__ = [
    "FEATURES",
    "NativeLayout",
    "call",
    "check_grid",
    "check_sizes",
    "codes_argument",
    "features_argument",
    "lay_out",
    "native",
]

#: The dtypes of features, by the number that ``DType`` in csrc/layout.h gives them.
FEATURES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class NativeLayout:
    """Where the codes of a batch lie in the packed sequence, for csrc.

    Attributes:
        native: The ``Layout`` of csrc, which holds pointers.
        cu_seqlens: Image i holds codes ``cu_seqlens[i]`` to ``cu_seqlens[i + 1]``; ``(B + 1,)`` int32.
        kept: The other tensors that ``native`` points to, so that their memory is not freed before it.
    """

    native: Any
    cu_seqlens: Tensor
    kept: tuple[Tensor, ...]


def native() -> Any:
    """The extension, for ops that run only where :func:`dqcore.backends.available` has found it."""
    module = backends.extension()
    assert module is not None
    return module


def call(stem: str, device: torch.device, *arguments: Any) -> Any:
    """Run ``<stem>_cpu`` or ``<stem>_cuda`` of the extension; on the CPU return its result.

    Raises:
        RuntimeError: A launch failed; the message names the CUDA error.
    """
    if device.type == "cpu":
        return getattr(native(), f"{stem}_cpu")(*arguments, torch.get_num_threads())
    with torch.cuda.device(device):
        stream = native().Stream(device.index, torch.cuda.current_stream(device).cuda_stream)
        error = getattr(native(), f"{stem}_cuda")(*arguments, stream)
    if error != 0:
        raise RuntimeError(f"{stem}: the launch failed with {native().cuda_error_name(error)}")
    return None


def check_sizes(
    grain: Tensor, order: str, num_granularities: int, cells: tuple[str, Tensor, int] | None = None
) -> None:
    """Raise unless csrc may follow its pointers: an op can be called without its public function and its checks.

    Args:
        grain: Grain map ``(B, h, w)`` int64; csrc keeps its values within range.
        order: Order of the sequence.
        num_granularities: ``G``.
        cells: Name, value and number of dimensions of a tensor ``(B, .., H, W)`` on the finest grid.
    """
    check_order(order)
    check_tensor("grain", grain, dim=3, dtypes=(torch.int64,))
    images, rows, columns = grain.shape
    check_grid(images, rows, columns, num_granularities)
    if cells is not None:
        name, tensor, dim = cells
        shift = num_granularities - 1
        expected = (images, rows << shift, columns << shift)
        if tensor.dim() != dim or (tensor.shape[0], *tensor.shape[-2:]) != expected:
            raise InputError(f"{name}: expected {expected} images and cells, got shape {tuple(tensor.shape)}")
        check_same_device(**{name: tensor, "grain": grain})


def check_grid(images: int, rows: int, columns: int, num_granularities: int) -> None:
    """Raise unless there are cells, and their number fits 31 bits."""
    if not 1 <= num_granularities <= 15 or min(rows, columns) < 1:
        raise InputError(
            f"grain: expected regions and 1 to 15 granularities, got {rows}x{columns}, {num_granularities}"
        )
    check_cells(max(1, images) * rows * columns, num_granularities)


def lay_out(grain: Tensor, order: str, num_granularities: int, name: str, total: int) -> NativeLayout:
    """Find where the codes of a grain map ``(B, h, w)`` lie in the packed sequence, by one prefix scan of each image.

    Args:
        grain: The grain map.
        order: Order of the sequence.
        num_granularities: ``G``.
        name: The argument that an error names if ``total`` is wrong.
        total: The number of codes; checked on the CPU only.
    """
    check_sizes(grain, order, num_granularities)
    grain = grain.contiguous()
    images, rows, columns = grain.shape
    starts = grain.new_empty(grain.shape, dtype=torch.int32)
    steps, cu_seqlens = torch.empty_like(starts), starts.new_empty(images + 1)
    line_starts = starts.new_empty(images * (num_granularities * rows + 1))
    pointers = (tensor.data_ptr() for tensor in (grain, starts, steps, cu_seqlens))
    layout = native().Layout(*pointers, images, rows, columns, num_granularities)
    call("layout", grain.device, layout, order == "row-first", line_starts.data_ptr())
    if grain.device.type == "cpu":
        check_total(name, total, int(cu_seqlens[-1]))
    return NativeLayout(layout, cu_seqlens, (grain, starts, steps))


def codes_argument(codes: Tensor, positions: Tensor, grains: Tensor) -> Any:
    """The ``Codes`` of csrc over contiguous ``(T,)`` tensors."""
    return native().Codes(codes.data_ptr(), positions.data_ptr(), grains.data_ptr(), len(codes))


def features_argument(features: Tensor) -> Any:
    """The ``Features`` of csrc over a dense map ``(B, D, H, W)``, contiguous or channels-last."""
    last = not features.is_contiguous()
    return native().Features(features.data_ptr(), features.shape[1], last, FEATURES.index(features.dtype))
