"""``dqcore data stats``: what a data set is like, before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from dqcore.cli.broken import name_broken
from dqcore.cli.targets import check_json_target
from dqcore.data.listing import choose, list_images
from dqcore.data.reading import allow_pixels
from dqcore.data.statistics import DataStatistics, Spread, measure_images
from dqcore.errors import InputError, at_least
from dqcore.files import write_json
from dqcore.nn.router import entropy_thresholds
from dqcore.printing import say
from dqcore.progress import progress_bar

__all__ = ["data_stats"]


def data_stats(
    source: Annotated[Path, Positional],
    *,
    ratios: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
    size: int = 256,
    patch_size: int = 16,
    limit: int | None = None,
    seed: int = 0,
    max_pixels: int | None = None,
    workers: int = 0,
    json: Path | None = None,
) -> None:
    """Read every image of a data set, and print their number, sizes, formats and colours, and which are broken.

    Thresholds are those at which an entropy router of two granularities gives a share of the regions fine codes.

    Args:
        source: Folder of images, searched recursively, .txt list of their paths, .tar or .zip file, LMDB database, or
            folder of such archives.
        ratios: Shares of fine regions to give thresholds for.
        size: Thresholds are for the middle square of each image at this many pixels.
        patch_size: Height and width of a region in pixels, the tokenizer's coarsest stride.
        limit: Read a random choice of this many images.
        seed: Decides that choice.
        max_pixels: Most pixels of an image; by default as many as fill a fortieth of the memory, at most 178 million.
        workers: Processes that read images.
        json: Also write the numbers to this file.
    """
    if any(not 0 < ratio < 1 for ratio in ratios):
        raise InputError(f"ratios: expected numbers between 0 and 1, got {' '.join(map(str, ratios))}")
    at_least(1, limit=limit)
    at_least(0, workers=workers)
    if json is not None:
        check_json_target(json, "data stats", "thresholds")
    paths = list_images(source)
    chosen = choose(paths, limit, seed)
    with allow_pixels(max_pixels), progress_bar() as bar:
        task = bar.add_task("read", total=len(chosen))
        found = measure_images(
            chosen,
            size=size,
            patch_size=patch_size,
            workers=workers,
            progress=lambda number: bar.update(task, completed=number),
        )
    name_broken(found.broken)
    if not found.sizes:
        raise InputError(f"source: none of the {len(chosen)} images can be read, the first: {found.broken[0]}")
    numbers = _numbers(found, ratios) | {
        "images": len(paths),
        "read": len(chosen),
        "size": size,
        "patch_size": patch_size,
    }
    if json is not None:
        write_json(json, {"source": str(source), **numbers})
    _print(numbers)


def _numbers(found: DataStatistics, ratios: tuple[float, ...]) -> dict[str, Any]:
    mean, deviation = found.colour
    return {
        "broken": found.broken,
        "formats": dict(found.formats.most_common()),
        **{name: getattr(found, name)._asdict() for name in ("width", "height", "short_side")},
        "colour_mean": mean,
        "colour_deviation": deviation,
        "thresholds": {str(ratio): entropy_thresholds(found.entropies, (ratio,))[0] for ratio in ratios},
    }


def _print(numbers: dict[str, Any]) -> None:
    of = f", {numbers['read']} of them read" if numbers["read"] < numbers["images"] else ""
    rows = [("images", f"{numbers['images']}{of}"), ("broken", str(len(numbers["broken"])))]
    rows += [("formats", ", ".join(f"{count} {name}" for name, count in numbers["formats"].items()))]
    for name in ("width", "height", "short_side"):
        spread = Spread(**numbers[name])
        rows += [(name.replace("_", " "), f"{spread.least} to {spread.largest} pixels, median {spread.median}")]
    for name in ("colour_mean", "colour_deviation"):
        red, green, blue = numbers[name]
        rows += [(name.replace("_", " "), f"{red:.3f} {green:.3f} {blue:.3f} (red, green, blue; pixels in [-1, 1])")]
    for name, text in rows:
        say(f"{name:<18}{text}")
    say()
    say(f"share of fine regions and threshold of entropy, patches of {numbers['patch_size']} pixels")
    for ratio, threshold in numbers["thresholds"].items():
        say(f"  {ratio:<8}{threshold:.5f} nats")
