"""How objects show themselves in an interactive session: a line of text, and in a notebook a small picture.

A ``repr`` never raises and changes nothing: where values cannot be read, on the meta device or while a graph is traced,
it says the shapes alone. NumPy and Pillow are imported when a picture is asked for.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "RGB",
    "as_html",
    "bars",
    "code_figures",
    "code_picture",
    "different",
    "grain_picture",
    "granularity_colour",
    "line",
    "percentages",
    "photo",
    "readable",
    "shape_of",
]

RGB = tuple[int, int, int]

#: Colours of three granularities, coarse to fine; two granularities take the first and the last.
_COLOURS: tuple[RGB, ...] = ((58, 110, 196), (38, 166, 140), (240, 138, 36))
_HOLE = 222  # grey of a cell without a code
_SIDE, _IMAGES = 160, 3  # pixels of a picture, at most; pictures that are drawn of a batch


def granularity_colour(granularity: int, num_granularities: int) -> RGB:
    """Accent colour of a granularity: blue for the coarsest, amber for the finest, blends between them."""
    last = len(_COLOURS) - 1
    place = last if num_granularities == 1 else granularity * last / (num_granularities - 1)
    low = min(int(place), last - 1)
    share = place - low
    a, b = _COLOURS[low], _COLOURS[low + 1]
    red, green, blue = (round(x + share * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def line(name: str, *parts: str, **fields: Any) -> str:
    """``name(part, .., field=value)``: tensors by shape, scalars by value; fields that are None are left out."""
    named = [f"{key}={_short(value)}" for key, value in fields.items() if value is not None]
    return f"{name}({', '.join([*parts, *named])})"


def shape_of(value: Any) -> str:
    """Dtype and shape of a tensor, and its device if that is not the CPU; anything else as ``repr`` has it."""
    if not isinstance(value, Tensor):
        return repr(value)
    where = "" if value.device.type == "cpu" else f" on {value.device}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{where}"


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Tensor) and value.dim() == 0 and (number := readable(value.detach().double())) is not None:
        return f"{float(number):.4g}"
    return shape_of(value)


def readable(values: Any) -> Any:
    """The values as a NumPy array, or None where they cannot be read."""
    if not isinstance(values, Tensor) or values.is_meta or torch.compiler.is_compiling():
        return None
    if values.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    try:
        return values.detach().cpu().numpy()
    except (RuntimeError, TypeError, NotImplementedError):  # a tensor without values: fake, or of vmap
        return None


def different(codes: Any) -> str:
    """A code map for :func:`line`: its shape, and how many different codes it has."""
    found = readable(codes)
    if found is None:
        return shape_of(codes)
    import numpy as np

    return f"{shape_of(codes)} with {int((np.unique(found) >= 0).sum())} different"


def percentages(counts: Sequence[float], whole: float) -> str:
    """Shares such as ``50 % / 50 %``, coarse to fine."""
    return " / ".join(f"{100 * count / max(whole, 1):.0f} %" for count in counts)


def code_picture(codes: Any, grains: Any = None, num_granularities: int = 1) -> Any:
    """A code map with a colour for each code.

    Args:
        codes: Integers ``(H, W)``; negative where there is no code.
        grains: Granularity of each cell, ``(H, W)``, negative for none; with it, lines separate the codes.
        num_granularities: G.

    Returns:
        Pixels, ``(h, w, 3)`` uint8, at most 160 a side where the grid is not larger.
    """
    import numpy as np

    turns = np.asarray(codes)[..., None] * 0.61803398875 + np.arange(3) / 3
    light = 0.55 + 0.15 * np.sin(np.asarray(codes)[..., None] * 2.3)
    colours = 255 * np.clip(light + 0.3 * np.cos(2 * np.pi * turns), 0, 1)
    return _enlarged(np.where(np.asarray(codes)[..., None] < 0, _HOLE, colours), grains, num_granularities)


def grain_picture(grains: Any, num_granularities: int) -> Any:
    """The granularity of each cell, ``(H, W)`` integers, negative for none: pixels, ``(h, w, 3)`` uint8."""
    import numpy as np

    palette = [granularity_colour(g, num_granularities) for g in range(num_granularities)]
    colours = np.array([*palette, (_HOLE,) * 3])[np.asarray(grains)]  # -1 is the last
    return _enlarged(colours, grains, num_granularities)


def photo(image: Tensor) -> Any:
    """Pixels ``(H, W, 3)`` uint8 of an image ``(3, H, W)`` with values in [-1, 1]; None if they cannot be read."""
    pixels = readable(image.detach().float().clamp(-1, 1).add(1).mul(127.5).round())
    return None if pixels is None else pixels.transpose(1, 2, 0).astype("uint8")


def _enlarged(colours: Any, grains: Any, num_granularities: int) -> Any:
    """Each cell as a square of pixels, darker along the upper and left edge of each code."""
    import numpy as np

    cell = max(1, min(16, _SIDE // max(colours.shape[:2])))
    pixels = np.kron(colours, np.ones((cell, cell, 1)))
    if grains is not None and cell > 2:
        finest = num_granularities - 1
        span = np.kron(cell << (finest - np.maximum(grains, 0)), np.ones((cell, cell), dtype=np.int64))
        place = np.indices(span.shape)
        pixels[((place % span) == 0).any(0)] *= 0.72
    return pixels.round().astype(np.uint8)


def means(values: Sequence[float], count: int) -> list[float]:
    """The means of at most ``count`` runs of neighbours, which are about equally long."""
    length = max(1, -(-len(values) // count))
    runs = [values[start : start + length] for start in range(0, len(values), length)]
    return [sum(run) / len(run) for run in runs]


def bars(values: Sequence[float], names: Sequence[str] = ()) -> str:
    """A small bar chart as SVG; a name shows where the pointer rests on a bar."""
    step, height = max(2, min(24, 480 // max(1, len(values)))), 60
    top = max([*values, 1e-12])
    drawn = []
    for index, value in enumerate(values):
        tall = max(1.0, height * value / top)
        title = f"<title>{html.escape(names[index])}</title>" if names else ""
        place = f'x="{index * step}" y="{height - tall:.1f}" width="{step - 1}" height="{tall:.1f}"'
        drawn.append(f'<rect {place} fill="rgb(58,110,196)">{title}</rect>')
    return f'<svg width="{step * len(values)}" height="{height}" role="img">{"".join(drawn)}</svg>'


def as_html(text: str, pictures: Iterable[tuple[str, Any]] = (), *, extra: str = "") -> str:
    """A text, captioned pictures below it in rows, and more HTML below them: what ``_repr_html_`` returns.

    Args:
        text: A plain text; its lines stay lines.
        pictures: Captions, and pixels ``(h, w, 3)`` uint8.
        extra: HTML.
    """
    figures = "".join(
        f'<figure style="margin:0"><img alt="{html.escape(caption)}" src="{_source(pixels)}" '
        f'style="image-rendering:pixelated;max-width:256px"><figcaption style="opacity:.7">{html.escape(caption)}'
        "</figcaption></figure>"
        for caption, pixels in pictures
    )
    rows = f'<div style="display:flex;flex-wrap:wrap;gap:12px;margin:6px 0">{figures}</div>' if figures else ""
    return f'<div><div style="white-space:pre-wrap">{html.escape(text)}</div>{rows}{extra}</div>'


def _source(pixels: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def code_figures(codes: Any, grains: Any = None, num_granularities: int = 1) -> list[tuple[str, Any]]:
    """Captions and pixels of the first images of a batch: the code map, and where known what each region got.

    Args:
        codes: NumPy integers ``(B, H, W)``, negative where there is no code.
        grains: Granularity of each cell, of the same shape, or None.
        num_granularities: G.
    """
    figures = []
    for index in range(min(len(codes), _IMAGES)):
        name = f"image {index}: " if len(codes) > 1 else ""
        here = None if grains is None else grains[index]
        if here is not None and num_granularities > 1:
            figures.append((f"{name}regions, amber: fine", grain_picture(here, num_granularities)))
        figures.append((f"{name}codes", code_picture(codes[index], here, num_granularities)))
    return figures
