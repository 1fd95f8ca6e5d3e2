"""``dqcore report``: write the report of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from dqcore.backends import choose_device
from dqcore.cli.targets import check_place
from dqcore.errors import InputError, at_least
from dqcore.inference.protocol import Protocol
from dqcore.printing import say
from dqcore.report.page import check_page
from dqcore.report.prior import is_prior, report_prior
from dqcore.report.run import read_config, report_run

__all__ = ["report"]


def report(
    run: Annotated[Path, Positional],
    *,
    images: Path | None = None,
    out: Path | None = None,
    photos: int = 12,
    size: int | None = None,
    twin: Path | None = None,
    device: str = "auto",
) -> None:
    """Write the report of a training run: one HTML file with pictures, curves and numbers.

    Photos are measured at their native size, and the page says which of them the run was trained on. Beside the
    tokenizer it shows JPEG and WebP at the same bytes. Of a prior's run it shows samples, and completions
    of the photos that --images names.

    Args:
        run: Folder of the run, of a tokenizer or a prior.
        images: File, folder, .txt list or archive of images to show and measure; by default those that the run held
            out. For a prior: photos whose lower half it completes.
        out: The HTML file; by default report.html in the run's folder.
        photos: Images shown, at most.
        size: Measure the central square of this many pixels instead of whole photos.
        twin: Folder of another tokenizer, usually of fixed length, to put beside it, with a map of its errors beside
            that of the codes.
        device: auto, cpu, cuda or cuda:N.
    """
    at_least(1, photos=photos)
    check_page(out)
    config = read_config(run)
    check_place(out or run / "report.html", "out")
    if is_prior(config):
        if size is not None or twin is not None:
            raise InputError("size, twin: expected none for a prior's run")
        say(report_prior(run, config, images=images, out=out, max_photos=photos, device=str(choose_device(device))))
        return
    page, _ = report_run(
        run, images=images, out=out, max_photos=photos, protocol=Protocol(size), twin=twin, device=device
    )
    say(page)
