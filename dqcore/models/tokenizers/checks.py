"""Checks of what users give to a tokenizer. A message says what was expected, and how to get it."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dqcore.backends import host_knows
from dqcore.errors import InputError

__all__ = ["check_codes", "check_images", "check_quantized"]

#: What was said or looked at once in this process.
_once: set[str] = set()


def check_images(images: Tensor, stride: int, weight: Tensor) -> None:
    """Raise unless a tokenizer can read ``images``; warn, once, where their values are not in [-1, 1].

    Args:
        images: What the user gave.
        stride: The coarsest stride.
        weight: A weight that works on the images' features; they must have its device and dtype.

    Raises:
        TypeError: No tensor of floating-point numbers, or of another dtype than the model.
        InputError: Another shape, or another device.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(f"images: expected a floating tensor (B, 3, H, W) with values in [-1, 1], {_got(images)}")
    if images.dim() != 4 or images.shape[1] != 3:
        raise InputError(f"images: expected (B, 3, H, W), got {tuple(images.shape)}{_layout_hint(images)}")
    if len(images) == 0:
        raise InputError(f"images: expected at least one, got an empty batch {tuple(images.shape)}")
    if min(images.shape) == 0 or images.shape[2] % stride or images.shape[3] % stride:
        raise InputError(
            f"images: expected height and width to be multiples of {stride}, got {tuple(images.shape)}; "
            f"dqcore.data.images.pad_to_stride(images, {stride}) makes them so"
        )
    if torch.compiler.is_compiling():
        return
    _check_place("images", images, weight)
    if images.dtype != weight.dtype and _plain(weight) and not torch.is_autocast_enabled(images.device.type):
        raise TypeError(f"images: expected {weight.dtype}, as the model, got {images.dtype}")
    _warn_of_range(images)


def check_codes(codes: Tensor, grain: Tensor | None, scale: int, codebook_size: int, weight: Tensor) -> None:
    """Raise unless a tokenizer can decode a code map.

    Args:
        codes: What the user gave.
        grain: A grain map, or None; only its shape is checked.
        scale: Cells of the finest grid in a region, in each direction.
        codebook_size: K; codes may be in [0, K], on the CPU they are checked.
        weight: A weight of the decoder, for its device.

    Raises:
        InputError: Another type, shape, dtype, device or range.
    """
    if not isinstance(codes, Tensor) or codes.dim() != 3 or codes.dtype != torch.int64:
        got = f"got {tuple(codes.shape)} {codes.dtype}" if isinstance(codes, Tensor) else _got(codes)
        raise InputError(f"codes: expected a (B, H, W) int64 code map, {got}")
    batch, height, width = codes.shape
    if codes.numel() == 0 or height % scale or width % scale:
        raise InputError(f"codes: expected height and width to be multiples of {scale}, got {tuple(codes.shape)}")
    expected = (batch, height // scale, width // scale)
    if grain is not None and (not isinstance(grain, Tensor) or grain.shape != expected):
        got = str(tuple(grain.shape)) if isinstance(grain, Tensor) else type(grain).__name__
        raise InputError(f"grain: expected shape {expected} for this code map, got {got}")
    if torch.compiler.is_compiling():
        return
    _check_place("codes", codes, weight)
    if host_knows(codes):
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high > codebook_size:
            raise InputError(f"codes: expected values in [0, {codebook_size}], got [{low}, {high}]")


def check_quantized(quantized: Tensor, dim: int) -> None:
    """Raise unless ``quantized`` is a quantized map ``(B, dim, H, W)``."""
    if not isinstance(quantized, Tensor) or not quantized.is_floating_point():
        hint = "; decode(codes) takes a code map" if isinstance(quantized, Tensor) else ""
        got = f"got {quantized.dtype}" if isinstance(quantized, Tensor) else _got(quantized)
        raise TypeError(f"quantized: expected a floating map (B, {dim}, H, W), {got}{hint}")
    if quantized.dim() != 4 or quantized.shape[1] != dim:
        raise InputError(f"quantized: expected a map (B, {dim}, H, W), got {tuple(quantized.shape)}")


def _check_place(name: str, tensor: Tensor, weight: Tensor) -> None:
    if tensor.device != weight.device and _plain(weight):
        raise InputError(f"{name}: expected device {weight.device}, as the model, got {tensor.device}")


def _plain(weight: Tensor) -> bool:
    """Whether a weight is where it computes: sharded, quantized and offloaded ones are of another type, or meta."""
    return type(weight) in (nn.Parameter, Tensor) and not weight.is_meta


def _got(value: object) -> str:
    """What came instead of a tensor that would do, and what to do with it."""
    if isinstance(value, Tensor):
        hint = ": dqcore.data.images.uint8_to_float(images)" if value.dtype == torch.uint8 else ""
        return f"got {value.dtype}{hint}"
    kind, hint = type(value).__name__, ""
    if hasattr(value, "codes") and hasattr(value, "grain"):
        hint = ": pass its .codes and .grain"
    elif kind == "CodeSequence":
        hint = ": pass what dqcore.unpack_codes gives"
    elif isinstance(value, (str, Path)) or hasattr(value, "convert"):
        read = "dqcore.data.images.read_image(path)" if isinstance(value, (str, Path)) else "image"
        hint = f": dqcore.data.images.image_to_tensor({read})[None]"
    elif isinstance(value, (list, tuple)):
        hint = ": torch.stack(images) makes a batch"
    return f"got {kind}{hint}"


def _layout_hint(images: Tensor) -> str:
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[3] == 3:
        return "; where the channels are last, images.permute(0, 3, 1, 2)"
    if len(shape) == 3 and shape[0] == 3:
        return "; one image is images[None]"
    if len(shape) == 3 and shape[2] == 3:
        return "; one image with the channels last is images.permute(2, 0, 1)[None]"
    if len(shape) == 4 and shape[1] in (1, 4):
        return "; grey: images.expand(-1, 3, -1, -1)" if shape[1] == 1 else "; without transparency: images[:, :3]"
    return ""


def _warn_of_range(images: Tensor) -> None:
    """Warn once in a process. The host waits for a GPU's numbers, so only the first images there are looked at."""
    if _once & {"range", images.device.type} or _unreadable(images):
        return
    if images.device.type != "cpu":
        _once.add(images.device.type)
    low, high = (float(value) for value in images.detach().aminmax())
    if (advice := _advice(images, low, high)) is not None:
        warnings.warn(f"images: expected values in [-1, 1]; {advice}", stacklevel=_outside())
        _once.add("range")


def _advice(images: Tensor, low: float, high: float) -> str | None:
    """What to do with images of this range; None if nothing. Resizing may overshoot a range a little."""
    if low >= -0.1 * high and high > 1.5:
        return f"for 8-bit values pass images / 127.5 - 1, these lie in [{low:.0f}, {high:.0f}]"
    if low < -1.5 or high > 1.5:
        return f"these lie in [{low:.2f}, {high:.2f}]; they are not normalised by mean and deviation"
    if low >= -0.05 and 0.3 < high - low <= 1.1 and not _bright_photo(images):
        return f"for values in [0, 1] pass 2 * images - 1, these lie in [{low:.2f}, {high:.2f}]"
    return None


def _unreadable(images: Tensor) -> bool:
    """Whether values cannot be read now: fake ones, a CUDA graph or a trace is recorded, functorch is at work."""
    if type(images) is not Tensor or images.is_meta or torch._C._get_tracing_state() is not None:
        return True
    capturing = images.is_cuda and torch.cuda.is_current_stream_capturing()
    return capturing or torch._C._are_functorch_transforms_active()


def _bright_photo(images: Tensor) -> bool:
    """Whether values without a negative one are a bright 8-bit photo, ``k / 127.5 - 1``: odd multiples of 1/255."""
    halves = (images.detach().float() * 255 - 1) / 2
    return bool(((halves - halves.round()).abs() < 0.1).all())


def _outside() -> int:
    """The ``stacklevel`` of the first frame outside dqcore and torch: the user's line."""
    inside = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[2], Path(torch.__file__).parent))
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, depth = frame.f_back, depth + 1
    return depth
