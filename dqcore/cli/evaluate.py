"""``dqcore evaluate``: measure a tokenizer on a folder of images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dqcore.files import write_json
from dqcore.inference.evaluate import EvaluationOptions, evaluate_folder
from dqcore.progress import progress_bar

__all__ = ["evaluate"]


def evaluate(
    folder: Annotated[Path, Positional],
    options: Annotated[EvaluationOptions, arg(name="")],
    *,
    checkpoint: Path,
    json: Path | None = None,
) -> None:
    """Measure a tokenizer on images: distortion, rate, use of the codebook.

    Args:
        folder: Folder of images, searched recursively, or a .txt list of their paths.
        options: The options of dqcore.inference.evaluate.
        checkpoint: Folder of a saved tokenizer or of a training run.
        json: Also write the numbers and the protocol to this file.
    """
    with progress_bar() as bar:
        task = bar.add_task("evaluate", total=None)
        result, protocol, broken = evaluate_folder(
            folder,
            checkpoint,
            options,
            progress=lambda finished, total: bar.update(task, completed=finished, total=total),
        )
    for reason in broken:
        print(f"broken: {reason}", file=sys.stderr)
    if json is not None:
        write_json(json, result.as_json() | {"protocol": protocol})
    for name, value in [*result.table(), *((name, str(value)) for name, value in protocol.items())]:
        print(f"{name:<26}{value}")
