"""The report of a run: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dqcore.files import write_atomically
from dqcore.inference.measure import Evaluation
from dqcore.inference.reconstruct import Reconstruction
from dqcore.report.charts import run_charts
from dqcore.report.pictures import error_map, grain_overlay, granularity_colour

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Gallery", "Photo", "write_report"]

#: Small pictures are enlarged by a whole factor, so that their longer side has about this many pixels.
PICTURE_SIZE = 384


@dataclass(frozen=True)
class Photo:
    """An image that the report shows, with its name and its reconstruction."""

    name: str
    result: Reconstruction


@dataclass(frozen=True)
class Gallery:
    """A section of pictures: its heading, a sentence about it, and images ``(3, H, W)`` in [-1, 1] with captions."""

    title: str
    remark: str
    pictures: Sequence[tuple[Tensor, str]]


def write_report(
    path: Path,
    *,
    title: str,
    model: Any,
    evaluation: Evaluation,
    photos: Sequence[Photo],
    rows: Sequence[dict[str, Any]],
    settings: dict[str, object],
    note: str = "",
    galleries: Sequence[Gallery] = (),
) -> Path:
    """Write the page.

    Args:
        path: The HTML file.
        title: Its heading.
        model: The tokenizer, for its sizes.
        evaluation: Numbers measured on the held-out images.
        photos: The images to show.
        rows: Rows of the run's ``metrics.jsonl``.
        settings: What to list in the table of settings.
        note: A sentence under the headline numbers.
        galleries: More pictures, after the photographs.

    Returns:
        ``path``.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("dqcore.report", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=title,
        note=note,
        granularities=_granularities(model, evaluation),
        headline=_headline(model, evaluation),
        photos=[_photo(photo, model.config.num_granularities) for photo in photos],
        galleries=[_gallery(gallery) for gallery in galleries],
        charts=run_charts(rows, evaluation, _target(model)),
        settings=settings,
    )
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def _target(model: Any) -> float | None:
    """Target share of fine regions; None for a tokenizer without a router."""
    ratios = getattr(model.config, "target_ratio", None)
    return None if ratios is None else float(ratios[-1])


def _granularities(model: Any, evaluation: Evaluation) -> list[dict[str, str]]:
    """The legend, coarse to fine: name, accent colour, codes of a region, share of the regions."""
    strides = model.config.strides
    names = {1: ["all"], 2: ["coarse", "fine"], 3: ["coarse", "median", "fine"]}.get(
        len(strides), [f"granularity {g}" for g in range(len(strides))]
    )
    return [
        {
            "name": name,
            "colour": "#{:02x}{:02x}{:02x}".format(*granularity_colour(g, len(strides))),
            "codes": f"{4**g} code{'s' if g else ''} for {strides[0]} × {strides[0]} pixels",
            "share": f"{evaluation.ratios[g]:.0%}",
        }
        for g, name in enumerate(names)
    ]


def _headline(model: Any, evaluation: Evaluation) -> list[dict[str, str]]:
    """The numbers at the top of the page: name, value, unit and a remark."""
    config, target = model.config, _target(model)
    fixed = 4 ** (config.num_granularities - 1) * evaluation.codes_per_image / _codes_per_region(evaluation)
    cards = [
        ("PSNR", f"{evaluation.psnr:.2f}", "dB", f"SSIM {evaluation.ssim:.3f}"),
        ("Codes per image", f"{evaluation.codes_per_image:.0f}", "", f"all fine: {fixed:.0f}"),
        (
            "Bits per pixel",
            f"{evaluation.bits_per_pixel:.4f}",
            "",
            f"{evaluation.entropy_bits_per_pixel:.4f} entropy-coded; 24 in the original",
        ),
        (
            "Fine regions",
            f"{evaluation.fine_ratio:.1%}",
            "",
            "of all regions" if target is None else f"target {target:.0%}",
        ),
        (
            "Codebook in use",
            f"{evaluation.usage:.0%}",
            "",
            f"of {config.codebook_size} codes, perplexity {evaluation.perplexity:.0f}",
        ),
    ]
    if evaluation.rank_correlation is not None:
        cards.append(
            ("Codes follow detail", f"{evaluation.rank_correlation:.2f}", "ρ", "rank correlation with entropy")
        )
    if evaluation.lpips is not None:
        cards.append(("LPIPS", f"{evaluation.lpips:.3f}", "", "lower is closer"))
    return [dict(zip(("name", "value", "unit", "remark"), card, strict=True)) for card in cards]


def _codes_per_region(evaluation: Evaluation) -> float:
    return sum(share * 4**g for g, share in enumerate(evaluation.ratios))


def _photo(photo: Photo, num_granularities: int) -> dict[str, Any]:
    result = photo.result
    height, width = result.image.shape[1:]
    scale = max(1, round(PICTURE_SIZE / max(height, width)))
    overlay = grain_overlay(result.padded, result.grain, num_granularities, scale=scale)
    overlay = overlay.crop((0, 0, width * scale, height * scale))
    return {
        "name": photo.name,
        "facts": f"{result.psnr:.1f} dB · {result.num_codes} codes · {result.bits_per_pixel:.3f} bits/pixel",
        "pictures": [
            {"caption": "input", "source": _inline(_picture(result.image, scale))},
            {"caption": "where the codes went", "source": _inline(overlay)},
            {"caption": "reconstruction", "source": _inline(_picture(result.reconstruction, scale))},
            {"caption": "error", "source": _inline(_enlarged(error_map(result.image, result.reconstruction), scale))},
        ],
    }


def _gallery(gallery: Gallery) -> dict[str, Any]:
    pictures = [
        {"caption": caption, "source": _inline(_picture(image, max(1, PICTURE_SIZE // (2 * max(image.shape)))))}
        for image, caption in gallery.pictures
    ]
    return {"title": gallery.title, "remark": gallery.remark, "pictures": pictures}


def _picture(image: Tensor, scale: int) -> Image:
    from dqcore.data.images import tensor_to_image

    return _enlarged(tensor_to_image(image), scale)


def _enlarged(image: Image, scale: int) -> Image:
    from PIL import Image as Images

    return image.resize((image.width * scale, image.height * scale), Images.Resampling.BICUBIC)


def _inline(image: Image) -> str:
    """The image as a data URI, for the ``src`` of an ``<img>``."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
