"""``dqcore evaluate --compare`` and ``--samples``: two results side by side, and sets of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dqcore.cli.broken import name_broken
from dqcore.distributed import join_world, process_rank
from dqcore.errors import InputError
from dqcore.inference.evaluate import EvaluationOptions, PhotoEvaluation, evaluate_photos
from dqcore.inference.paired import compare_results, in_columns, paired_notes, read_result
from dqcore.inference.sets import evaluate_samples
from dqcore.printing import one_line, say
from dqcore.progress import progress_bar

__all__ = ["Keep", "measure_pair", "measure_samples", "measured", "print_rows"]

#: Takes a result before it is printed.
Keep = Callable[[dict[str, Any]], None]


def measured(title: str, images: Sequence[Path], checkpoint: Path, options: EvaluationOptions) -> PhotoEvaluation:
    """Measure a tokenizer under a progress bar, and name the broken files."""
    with progress_bar() as bar:
        task = bar.add_task(one_line(title), total=None)
        found = evaluate_photos(
            images,
            checkpoint,
            options,
            progress=lambda finished, total: bar.update(task, completed=finished, total=total),
        )
    name_broken(found.broken)
    return found


def measure_pair(
    images: Sequence[Path], pair: tuple[Path, Path], options: EvaluationOptions, broken: list[str], keep: Keep
) -> dict[str, Any]:
    """Compare two tokenizers on the same photos, or two results in files; keep, print and return what was found.

    ``broken`` takes why files were passed over.
    """
    if images:
        if missing := [path for path in pair if not (path.exists() or str(path).startswith("hf:"))]:
            raise FileNotFoundError(f"compare: {missing[0]}: no such folder")
        options = dataclasses.replace(options, peers=False)
        both = [measured(f"evaluate {path}", images, path, options) for path in pair]
        broken += both[0].broken
        results = [found.as_json() for found in both]
    elif all(path.is_file() for path in pair):
        join_world("cpu", options.timeout)  # of several processes the first one prints
        results = [read_result(path) for path in pair]
    else:
        raise InputError("images: expected at least one file or folder, or two files of results to compare")
    found, notes = compare_results(*results), paired_notes(*results)
    rows = {name: [result["sets"][name] for result in results] for name in _common_sets(results)}
    protocol = {name: results[0]["measured"][name] for name in ("protocol", "images", "data hash")}
    numbers = {name: each.as_json() for name, each in found.items()}
    kept = protocol | {"compared": [str(path) for path in pair], "numbers": numbers, "sets": rows, "notes": notes}
    keep(kept)
    table = [("", in_columns("A", "B", "A - B, photo by photo, with 95 % interval"))]
    table += [(x.name, x.text) for x in found.values()]
    table += [(name, in_columns(f"{a:.5g}", f"{b:.5g}", f"{a - b:+.5g}")) for name, (a, b) in rows.items()]
    about = [*((name, str(value)) for name, value in protocol.items()), *(("not the same", note) for note in notes)]
    print_rows([("A", str(pair[0])), ("B", str(pair[1])), *table, *about])
    return kept


def measure_samples(
    samples: Path, reference: Path, options: EvaluationOptions, broken: list[str], keep: Keep
) -> dict[str, Any]:
    """Measure samples against real images; keep, print and return what was found."""
    with progress_bar() as bar:
        task = bar.add_task("evaluate", total=None)
        found = evaluate_samples(
            [samples],
            [reference],
            options,
            progress=lambda finished, total: bar.update(task, completed=finished, total=total),
        )
    name_broken(found.passed_over, "left out")
    broken += found.broken
    keep(found.as_json())
    print_rows([(name, f"{value:.5g}") for name, value in found.numbers.items()])
    print_rows([(name, str(value)) for name, value in found.protocol.items()])
    return found.as_json()


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values, one below the other; of several processes the first one prints."""
    width = max([24, *(len(name) for name, _ in rows)]) + 2
    for name, text in rows if process_rank() == 0 else ():
        say(f"{name:<{width}}{text}")


def _common_sets(results: Sequence[dict[str, Any]]) -> list[str]:
    """The metrics of sets that both results have, measured by the same network on the same subsets."""
    first, second = results
    if any(first["measured"].get(name) != second["measured"].get(name) for name in ("network", "kid")):
        return []
    return [name for name in first.get("sets", {}) if name in second.get("sets", {})]
