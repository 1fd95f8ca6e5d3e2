"""``dqcore report``: write the report of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from dqcore.report.run import report_run

__all__ = ["report"]


def report(
    run: Annotated[Path, Positional],
    *,
    images: Path | None = None,
    out: Path | None = None,
    photos: int = 12,
    device: str = "auto",
) -> None:
    """Write the report of a training run: one HTML file with pictures, curves and numbers.

    Args:
        run: Folder of the run.
        images: Folder or .txt list of images to show and measure; by default those that the run held out.
        out: The HTML file; by default report.html in the run's folder.
        photos: Images shown, at most.
        device: auto, cpu, cuda or cuda:N.
    """
    page, _ = report_run(run, images=images, out=out, max_photos=photos, device=device)
    print(page)
