"""The report of a training run: measure its model, and write the page from the files in its folder."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqcore.data.images import image_to_tensor, list_images, read_image
from dqcore.data.listing import bare_name, spread
from dqcore.data.provenance import Provenance, provenance, say_provenance
from dqcore.data.splits import training_split
from dqcore.errors import InputError
from dqcore.files.sealed import read_sealed
from dqcore.inference.compare import Comparison
from dqcore.inference.encode_batch import why_not
from dqcore.inference.load import load_tokenizer
from dqcore.inference.measure import Evaluation, evaluate_tokenizer
from dqcore.inference.peers import PeerNumbers
from dqcore.inference.photos import PhotoBatches, list_photos
from dqcore.inference.protocol import NATIVE, Protocol
from dqcore.inference.rate import StreamCost
from dqcore.inference.twin import compare_twin
from dqcore.progress import counted
from dqcore.report.charts import rate_chart, tokenizer_charts
from dqcore.report.headline import granularities, headline, peer_rows, target_ratio
from dqcore.report.maps import codes_beside_errors
from dqcore.report.page import Gallery, Page, write_page
from dqcore.report.photos import photo_entry
from dqcore.training.log import read_metrics, read_pictures
from dqcore.training.status import read_status

__all__ = ["computed_on", "how_far", "read_config", "report_run", "while_it_trained"]

INTRO = (
    "An ordinary image tokenizer spends as many codes on an empty sky as on a face. This one looks at every region of "
    "a photo and decides how many codes its detail is worth."
)
PICTURED = "Held-out photos, their reconstructions, and where the codes are"
#: Shares of fine regions that the slider and the curve have.
DETAILS = (0.0, 0.25, 0.5, 0.75, 1.0)


def report_run(
    run: Path,
    *,
    images: Path | None = None,
    out: Path | None = None,
    title: str | None = None,
    note: str = "",
    max_photos: int = 12,
    max_images: int = 1000,
    protocol: Protocol = NATIVE,
    twin: Path | None = None,
    device: str = "auto",
    opening: Sequence[Gallery] = (),
    galleries: Sequence[Gallery] = (),
) -> tuple[Path, Evaluation]:
    """Measure a tokenizer's run on the images it held out, and write its report.

    Args:
        run: Folder of a training run.
        images: Other images to measure on, a folder or a ``.txt`` list.
        out: The HTML file; ``report.html`` in the run's folder by default.
        title: The page's heading.
        note: A sentence under the headline numbers.
        max_photos: Photos shown, and compared with codecs and at other ratios, at most.
        max_images: Photos measured, at most; of more than these some, spread evenly.
        protocol: What of each photo is measured; by default the whole photo at its native size.
        twin: Folder of another tokenizer to put beside it, on the photos shown, with a map of its errors.
        device: Where to run the model.
        opening: More pictures, before the photos.
        galleries: More pictures, after the photos.

    Returns:
        The page's path, and what was measured.

    Raises:
        FileNotFoundError: The folder holds no run, or its images are gone.
        ValueError: The run's files cannot be read, or it held out no images and none were given.
    """
    config, model = read_config(run), load_tokenizer(run, device)
    cost = StreamCost.of_checkpoint(run, model.config)
    every = _held_out(config, images)
    batches = PhotoBatches(spread(every, max_images), protocol, why_not=functools.partial(why_not, model.config))
    comparison = Comparison(model, cost, details=_details(model.config), limit=max_photos, keep=True)
    found = evaluate_tokenizer(model, batches, cost=cost, protocol=str(protocol), each=comparison)
    shown = PhotoBatches(batches.good[: len(comparison.shown)], protocol)
    twins, beside = _twin(model, cost, twin, comparison, shown, device)
    known = provenance(run, batches.good)
    page = Page(
        title=title or f"{config['options']['preset']}: a report",
        intro=INTRO,
        note=" ".join(filter(None, [note, _broken(batches.broken)])),
        photos_title=_photos_title(known),
        photos_remark=_photos_remark(len(comparison.shown), known),
        opening=opening,
        galleries=[*beside, *while_it_trained(run, PICTURED), *galleries],
        charts=tokenizer_charts(read_metrics(run / "metrics.jsonl"), found, target_ratio(model)),
        settings=_settings(config, found, say_provenance(known), len(every)) | how_far(run),
        **_parts(model, found, comparison, twins, _entries(batches.good, comparison, known, model.config)),
    )
    return write_page(out or run / "report.html", page), found


def how_far(run: Path) -> dict[str, str]:
    """How far a run has come, if it says so."""
    now = read_status(run)
    return {} if now is None else {"training": str(now)}


def _twin(
    model: Any, cost: StreamCost, folder: Path | None, comparison: Comparison, shown: PhotoBatches, device: str
) -> tuple[tuple[PeerNumbers, ...], list[Gallery]]:
    """Another tokenizer on the photos shown, its numbers and its errors beside the codes; nothing without a folder."""
    if folder is None:
        return (), []
    twin = load_tokenizer(folder, device)
    numbers = compare_twin(model, cost, twin, StreamCost.of_checkpoint(folder, twin.config), shown)
    names = [bare_name(path.name) for path in shown.good]
    return numbers, codes_beside_errors(twin, comparison.shown, names, model.config)


def while_it_trained(run: Path, shown: str) -> list[Gallery]:
    """The pictures that the training kept, the last of them first; ``shown`` says what is in them."""
    kept = [(image_to_tensor(read_image(path)), f"step {step:,}") for step, path in reversed(read_pictures(run))]
    return [Gallery("While it trained", f"{shown}; the latest first.", kept)] if kept else []


def _details(config: Any) -> tuple[float, ...]:
    return DETAILS if config.num_granularities > 1 else ()


def _entries(
    paths: Sequence[Path], comparison: Comparison, known: Sequence[Provenance], config: Any
) -> list[dict[str, Any]]:
    """The photos shown."""
    trios = zip(paths, comparison.shown, known, strict=False)
    return [photo_entry(bare_name(path.name), photo, config, _remark(kind)) for path, photo, kind in trios]


def _parts(
    model: Any, found: Evaluation, comparison: Comparison, twins: Sequence[PeerNumbers], photos: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the page shows of the measurements."""
    return {
        "headline": headline(model, found),
        "legend": granularities(model, found),
        "photos": photos,
        "peers": peer_rows((comparison.own, *comparison.peers, *twins), len(photos)),
        "results": rate_chart(comparison.curve, len(photos)),
    }


def computed_on(config: dict[str, Any]) -> str:
    """What a run was computed on: a GPU, or how many cores of a CPU."""
    device = config["device"]
    return counted(config["threads"], "CPU core") if device == "cpu" else device


def read_config(run: Path) -> dict[str, Any]:
    """The description of a run, ``config.json`` in its folder.

    Raises:
        FileNotFoundError: The folder holds no run.
        InputError: The file is no description of one.
    """
    path = run / "config.json"
    if not path.is_file() or not (run / "model").is_dir():
        raise FileNotFoundError(f"{run}: expected the folder of a training run, with config.json and model/")
    try:
        config: dict[str, Any] = read_sealed(path)
        _ = config["options"]["preset"], config["options"]["image_size"], config["versions"]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the description of a training run ({error})") from error
    return config


def _held_out(config: dict[str, Any], images: Path | None) -> list[Path]:
    """The images to measure on: those that were named, else those that the run held out."""
    if images is not None:
        return list_photos([images])
    options, held = config["options"], config["data"].get("validation")
    if options["validation"] is not None:
        return list_images(_as_started(config, options["validation"]))
    if not options["validation_share"]:
        raise InputError("images: the run held out no images; name a folder of some")
    data = _as_started(config, options["data"])
    return training_split(data, list_images(data), options["validation_share"], held).validation


def _as_started(config: dict[str, Any], path: str) -> Path:
    """A path among the options, seen from the folder that the run was started in; from this one where that is gone."""
    place = Path(config.get("started_in", ""), path)
    return place if place.exists() else Path(path)


def _remark(kind: Provenance) -> str:
    return "not known whether trained on" if kind == "unknown" else kind


def _photos_title(known: Sequence[Provenance]) -> str:
    if set(known) == {"held out"}:
        return "Held-out photos"
    return "Photos that it was trained on" if set(known) == {"trained on"} else "Photos"


def _photos_remark(shown: int, known: Sequence[Provenance]) -> str:
    which = "Shown and measured" if shown == len(known) else f"Shown: the first {shown}. Measured"
    return f"{which}: {say_provenance(known)}. Drag the bar, or focus it and use the arrow keys."


def _broken(broken: Sequence[str]) -> str:
    return f"{counted(len(broken), 'file')} could not be read, the first: {broken[0]}." if broken else ""


def _settings(config: dict[str, Any], evaluation: Evaluation, known: str, total: int) -> dict[str, object]:
    options, versions = config["options"], config["versions"]
    model = config.get("model")
    strides = model["strides"] if isinstance(model, dict) else "?"
    photos = counted(evaluation.num_images, "photo")
    photos += f" of {total:,}, spread evenly over them" if evaluation.num_images < total else ""
    return {
        "model": f"{options['preset']}, {config['parameters']:,} parameters, strides {tuple(strides)}",
        "codebook": f"{len(evaluation.code_counts)} codes",
        "training images": f"{config['data']['training']:,}, and {config['data'].get('validation', 0):,} held out",
        "measured on": f"{photos} ({known}), {evaluation.protocol}",
        "how": "padded to the coarsest stride, cropped back, rounded to 8 bits; the mean of each photo's PSNR",
        "steps": f"{config['steps']:,} of {options['batch_size']} crops of {options['image_size']} pixels",
        "seed": options["seed"],
        "device": computed_on(config),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
