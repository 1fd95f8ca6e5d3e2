"""Each target that a GPU is held to stands in NOTES, beside what was measured and what is predicted."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("tyro")  # which rows of training need
import bench_dynamic_lookup
import bench_expand_features
import bench_generate
import bench_nearest_code
import bench_patch_entropy
import bench_prior_training
import bench_quantizer
import bench_varlen_attention
import torch

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
STORED = {row["name"]: row["extra_info"] for row in json.loads((RESULTS / "h100.json").read_text())["rows"]}
NEAREST = [(32768, 8192, 256, dtype) for dtype in (torch.float32, torch.bfloat16)]
TARGET = bench_quantizer.EAGER["speedup"]


def attention(index, dropout=0.0):
    ways = ("forward", "backward")
    names = [f"bench_varlen_attention::bench_varlen_attention[{way},{dropout},{index}]" for way in ways]
    limits = [1e6 * bench_varlen_attention.SECONDS[index, way, dropout] for way in ways]
    return [1e6 * STORED[name]["seconds"] for name in names], limits


def speedups(name, peers):
    return [STORED[name]["speedup"][peer] for peer in peers]


def seconds(*names):
    return [1e6 * STORED[name]["seconds"] for name in names]


FLOAT32 = [speedups(f"bench_varlen_attention::bench_float32[{way},tf32x3]", ["efficient_attention"])[0]
           for way in ("forward", "backward")]  # fmt: skip
#: Beginning of a row, what was measured as far as ``h100.json`` has it, and the target.
ROWS = {
    "quantizer step eager": (speedups("bench_quantizer::bench_eager_training_step[]", TARGET), [*TARGET.values()]),
    "quantizer step, graph": (seconds("bench_quantizer::bench_training_step[0.5]"),
                              [1e6 * bench_quantizer.TARGET["seconds"]]),
    "`dynamic_lookup` NCHW": (seconds("bench_dynamic_lookup::bench_dynamic_lookup[torch.float32]"),
                              2 * [1e6 * bench_dynamic_lookup.TARGET["seconds"]]),
    "`nearest_code` float32": (seconds(*(f"bench_nearest_code::bench_nearest_code[{i}]" for i in (0, 1))),
                               [1e6 * bench_nearest_code.TARGETS[shape]["seconds"] for shape in NEAREST]),
    "attention forward": attention(0),
    "same, dropout": attention(0, 0.1),
    "same, 8 x 128": attention(1),
    "float32 forward": (FLOAT32, [*bench_varlen_attention.FLOAT32.values()]),
    "sampling": ([STORED["bench_generate::bench_base_model[]"]["images_per_second"]],
                 [*bench_generate.IMAGES.values()]),
    "training": ([100 * STORED[f"bench_prior_training::bench_base_training_step[{way}]"]["share_of_matrix_peak"]
                  for way in (False, True)], [100 * bench_prior_training.SHARE]),
    "`expand_features`": (seconds("bench_patch_entropy::bench_patch_entropy[]"),
                          [100 * bench_expand_features.SHARE, 1e6 * bench_patch_entropy.TARGET["seconds"]]),
}  # fmt: skip


def lines():
    table = (RESULTS / "NOTES.md").read_text().split("### The targets")[1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:2] == "| "]
    return [line for line in cells[1:] if len(line) == 5]


def numbers(text):
    return [float(word) for word in re.findall(r"\d+(?:\.\d+)?", text)]


@pytest.mark.parametrize("row", ROWS)
def test_a_target_is_told_and_predicted(row):
    measured, target = ROWS[row]
    ((_, was, limit, predicted, by),) = [line for line in lines() if line[0].startswith(row)]
    assert numbers(limit) == pytest.approx(target)
    digits = 2 if measured[0] < 10 else 0
    assert {round(value, digits) for value in measured} <= {*numbers(was)}, measured
    assert numbers(predicted) and by
    assert predicted.endswith((": missed", ": met"))


def test_every_line_is_a_target():
    assert len(lines()) == len(ROWS)
    assert all(any(line[0].startswith(row) for row in ROWS) for line in lines())


@pytest.mark.parametrize("row", ROWS)
def test_what_is_missed_is_said_to_be(row):
    """Each prediction, from the worse to the better end, against its target: times are to fall, shares to rise."""
    (line,) = [line for line in lines() if line[0].startswith(row)]
    parts, limits = line[3].removesuffix(": missed").removesuffix(": met").split(" / "), numbers(line[2])
    reached = []
    for part, limit in zip(parts, limits, strict=True):
        rises = "us" not in line[2] or (row == "`expand_features`" and "%" in part)
        ends = numbers(part)
        reached.append(min(ends) >= limit if rises else max(ends) <= limit)
    assert line[3].endswith(": met") == all(reached)
