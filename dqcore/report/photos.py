"""The photos of a report: at each setting the reconstruction, where the codes went, the error, and the codecs."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dqcore.data.images import tensor_to_image
from dqcore.inference.compare import Shown, State
from dqcore.metrics.distortion import psnr
from dqcore.progress import counted
from dqcore.report.pictures import error_map, grain_layer

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["inline", "photo_entry"]

#: Longer sides are shrunk to this many pixels in the page; numbers are those of the whole photo.
LONGEST = 1280
LONGEST_ERROR = 480


def photo_entry(name: str, shown: Shown, config: Any, remark: str) -> dict[str, Any]:
    """What the template needs of a photo.

    Args:
        name: Its heading.
        shown: The photo at all settings.
        config: The tokenizer's configuration.
        remark: Whether it was trained on, in words.
    """
    height, width = shown.image.shape[1:]
    states = sorted(shown.states, key=lambda state: (state.result.num_codes, state.detail is not None))
    first = next(index for index, state in enumerate(states) if state.detail is None)
    return {
        "name": name,
        "remark": remark,
        "width": width,
        "height": height,
        "input": _source(shown.image),
        "first": first,
        "states": [_state(state, config) for state in states],
    }


def _state(state: State, config: Any) -> dict[str, Any]:
    """The pictures and the words of a setting."""
    result = state.result
    shape = (result.image.shape[1], result.image.shape[2])
    layer = grain_layer(result.grain, config.num_granularities, shape, config.strides[0])
    errors = _shrunk(error_map(result.image, result.reconstruction), LONGEST_ERROR)
    return {
        "label": counted(result.num_codes, "code") + (" · the router's choice" if state.detail is None else ""),
        "facts": f"{result.psnr:.1f} dB · {result.num_bytes:,} bytes · {result.bits_per_pixel:.3f} bits per pixel",
        "image": _source(result.reconstruction),
        "layer": inline(layer, "PNG", optimize=True, transparency=layer.info["transparency"]),
        "error": inline(errors, "WEBP", quality=75),
        "peers": {name: _peer(name, coded, result.image) for name, coded in state.peers.items()},
    }


def _peer(name: str, coded: Any, image: Tensor) -> dict[str, str]:
    decibels = float(psnr(image[None], coded.pixels()[None]))
    facts = f"{name}: {decibels:.1f} dB in {len(coded.data):,} bytes"
    if not coded.fits:
        facts += ", its smallest file: it cannot be as small as ours"
    kind = "jpeg" if name == "JPEG" else "webp"
    return {"image": f"data:image/{kind};base64,{base64.b64encode(coded.data).decode()}", "facts": facts}


def _source(image: Tensor) -> str:
    """An image ``(3, H, W)`` in [-1, 1] for the ``src`` of an ``<img>``."""
    return inline(_shrunk(tensor_to_image(image), LONGEST), "WEBP", quality=88)


def _shrunk(picture: Image, longest: int) -> Image:
    from PIL import Image as Images

    scale = longest / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Images.Resampling.LANCZOS)


def inline(picture: Image, kind: str, **options: Any) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
