"""``dqcore demo``: train a small tokenizer and a small prior on the sample photographs, and write a report."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dqcore.cli.demo.galleries import galleries
from dqcore.cli.demo.opening import opening
from dqcore.data.photos import sample_folder
from dqcore.errors import InputError, at_least
from dqcore.files import sole_owner, write_json
from dqcore.inference.measure import Evaluation
from dqcore.printing import say
from dqcore.progress import shown_log
from dqcore.report.run import report_run
from dqcore.training import PriorTraining, TokenizerTraining, train_prior, train_tokenizer

__all__ = ["STEPS", "DemoResult", "run_demo"]

#: Steps of the tokenizer, about 100 seconds; the prior takes at most its recipe's.
STEPS, PRIOR_STEPS = 1000, 250
#: The file that says that a folder is a demo's.
MARK = "demo.json"
#: What a demo leaves in its folder, and in that of its prior.
_MADE = (
    *("model/*", "model/tokenizer/*", "checkpoint.pt", "codes.pt", "nonfinite.pt", "metrics.jsonl", "config.json"),
    *("seen_images.json", "broken_images.txt", "evaluation.json", "report.html", "status.json", "pictures/*.png"),
)


@dataclass(frozen=True)
class DemoResult:
    """A finished demo.

    Attributes:
        page: The report.
        evaluation: Measured on the held-out photographs.
        target_ratio: Share of fine regions that the router was fitted for.
        seconds: Wall time of training and report.
    """

    page: Path
    evaluation: Evaluation
    target_ratio: float
    seconds: float


def run_demo(
    *, steps: int | None = None, out: Path = Path("runs/demo"), seed: int = 0, prior: bool = True
) -> DemoResult:
    """Show the weights that come with dqcore, train a small tokenizer and a prior beside them, and write a report.

    Needs neither a GPU nor a network; takes four to ten minutes on two cores.

    Args:
        steps: The tokenizer's optimiser steps; by default as many as the page's numbers need.
        out: Folder of the run; a demo that lies there already is replaced.
        seed: Decides the weights, the crops and their order.
        prior: Go on to a small prior, whose samples and completions the report shows; without it three minutes do.

    Returns:
        What was made. ``out`` holds ``report.html`` and ``evaluation.json``, and the numbers were printed.

    Raises:
        ValueError: ``out`` holds something other than a demo, or ``steps`` is below 1.
    """
    start = time.perf_counter()
    steps = STEPS if steps is None else steps
    at_least(1, steps=steps)
    with sole_owner(out, "running a demo or a training"):
        _clear(out)
        write_json(out / MARK, {"steps": steps, "seed": seed})
        return _run(steps, out, seed, prior, start)


def _run(steps: int, out: Path, seed: int, prior: bool, start: float) -> DemoResult:
    line, first = opening()
    say(line)
    train, heldout = sample_folder("train"), sample_folder("heldout")
    common: dict[str, Any] = {"seed": seed, "device": "cpu"}
    with _one_thread(), shown_log(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "KMeans: ")  # its few crops are fewer than codes, which start again later
        say(f"training a tokenizer on sample photographs for {steps} steps")
        sizes = {"image_size": 64, "resize": 128}  # of crops and photographs
        options = TokenizerTraining.small(train, out, validation=heldout, steps=steps, **sizes, **common)
        model = train_tokenizer(options).model
        trained = time.perf_counter() - start
        if prior:
            say("training a prior on its codes")
            train_prior(PriorTraining.small(train, out, out / "prior", steps=min(steps, PRIOR_STEPS), **common))
    page, evaluation = report_run(
        out,
        title="dqcore demo: codes where the detail is",
        note=f"Trained for {trained:.0f} seconds on one CPU core. Who took the photographs: "
        "dqcore/data/sample/ATTRIBUTION.md.",
        device="cpu",
        opening=[first],
        galleries=galleries(out, seed) if prior else [],
    )
    result = DemoResult(page, evaluation, model.config.target_ratio[-1], time.perf_counter() - start)
    _write_and_print(result, out)
    return result


def _write_and_print(result: DemoResult, out: Path) -> None:
    numbers = result.evaluation
    write_json(out / "evaluation.json", numbers.as_json() | {"target_ratio": result.target_ratio})
    for name, value in numbers.table():
        say(f"{name:<24}{value}")
    say(f"done in {result.seconds:.0f} s; open {result.page}")


def _clear(out: Path) -> None:
    """Remove an earlier demo; refuse to touch anything else."""
    if not any(out.iterdir()):
        return
    mark = _read(out / MARK)
    if not mark:
        raise InputError(f"out: {out} is there already and was not made by dqcore demo; choose another folder")
    options = _read(out / "config.json").get("options")
    if options is not None and any(options.get(name) != value for name, value in mark.items()):
        raise InputError(f"out: the demo in {out} was trained further since; choose another folder")
    for folder in (out / "prior", out):
        for path in (path for pattern in _MADE for path in folder.glob(pattern)):
            if not path.is_dir():
                path.unlink()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: networks this small gain little from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
