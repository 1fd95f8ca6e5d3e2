"""How well a quantizer learns when its user names only the sizes: ours beside others, each with its own defaults.

``python benchmarks/bench_defaults.py`` trains every layer on every task with three seeds (about 10 minutes on one core)
and writes ``results/defaults.json``; ``pytest benchmarks/bench_defaults.py`` only runs a few steps of each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from autoencoders import TASKS, Missing, train
from default_layers import LAYERS
from machine import machine, versions

from dqcore.files import write_atomically

RESULTS = Path(__file__).with_name("results") / "defaults.json"
STEPS, SEEDS = 300, (0, 1, 2)
OURS = "dqcore"
#: What is measured, and whether less of it is better.
MEASURES = {"l1": True, "squared_error": True, "codes_used": False, "perplexity": False}
#: Measures in which ours may not lose to anyone.
HELD = ("l1", "squared_error", "codes_used")

Row = dict[str, Any]


def installed(layer: str) -> bool:
    """Whether what a layer needs is on this machine."""
    return layer != "vector_quantize_pytorch" or importlib.util.find_spec(layer) is not None


def rows_of(task: str, layers: list[str], seeds: tuple[int, ...] = SEEDS, steps: int = STEPS) -> list[Row]:
    """Train each layer with each seed: one row each."""
    rows = []
    for seed in seeds:
        for layer in layers:
            start = time.perf_counter()
            found = train(TASKS[task], LAYERS[layer], steps=steps, seed=seed)
            about = {"task": task, "layer": layer, "seed": seed, "steps": steps}
            rows.append(about | found | {"seconds": time.perf_counter() - start, "versions": versions()})
    return rows


def means(rows: list[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """By task and layer, the means over the seeds; ``all`` has the means over the tasks."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        same = [other for other in rows if (other["task"], other["layer"]) == (row["task"], row["layer"])]
        found.setdefault(row["task"], {})[row["layer"]] = {name: fmean(r[name] for r in same) for name in MEASURES}
    if not found:
        return {}
    everywhere = set.intersection(*(set(layers) for layers in found.values()))
    found["all"] = {
        layer: {name: fmean(layers[layer][name] for layers in list(found.values())) for name in MEASURES}
        for layer in sorted(everywhere)
    }
    return found


def behind(table: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Where a peer's mean is better than ours; empty if nowhere."""
    found = []
    for task, layers in table.items():
        for layer, values in layers.items() if OURS in layers else ():
            for name in HELD:
                gap = values[name] - layers[OURS][name]
                if layer != OURS and (gap < 0 if MEASURES[name] else gap > 0):
                    found.append(f"{task}: {name} of {layer} is {values[name]:.4g}, ours {layers[OURS][name]:.4g}")
    return found


def record(rows: list[Row], skipped: dict[str, str], path: Path = RESULTS) -> None:
    """Write the rows into the file; rows of other tasks, layers and seeds stay as they are."""
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = {(row["task"], row["layer"], row["seed"]): row for row in [*before, *rows]}
    rows = [kept[key] for key in sorted(kept)]
    table = means(rows)
    text = {"machine": machine(), "means": table, "behind": behind(table), "skipped": skipped, "rows": rows}
    write_atomically(path, lambda file: file.write((json.dumps(text, indent=1) + "\n").encode()))


@pytest.mark.parametrize("task", TASKS)
def bench_defaults(benchmark, request, task):
    """A few steps of every layer; with ``--benchmark`` all steps and seeds, in which ours may not lose."""
    layers = [layer for layer in LAYERS if installed(layer)]
    full = request.config.getoption("--benchmark")
    seeds, steps = (SEEDS, STEPS) if full else ((0,), 3)
    try:
        rows = benchmark.pedantic(rows_of, (task, layers, seeds, steps), rounds=1)
    except Missing as error:
        pytest.skip(str(error))
    table = means(rows)
    benchmark.extra_info |= {"means": table[task], "left_out": [layer for layer in LAYERS if layer not in layers]}
    if full:
        record(rows, {})
        assert not behind(table)


def main() -> None:
    """Measure, write the file, print the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=[name for name in LAYERS if installed(name)])
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    skipped = {name: "not installed" for name in LAYERS if not installed(name)}
    rows = []
    for task in options.tasks:
        try:
            rows += rows_of(task, options.layers, tuple(options.seeds), options.steps)
        except Missing as error:
            skipped[task] = str(error)
        record(rows, skipped, options.out)
    print(json.dumps(json.loads(options.out.read_text())["means"], indent=1))
    for name, why in skipped.items():
        print(f"{name} is left out: {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
