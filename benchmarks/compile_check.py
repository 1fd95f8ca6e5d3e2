"""Compile every Triton kernel ahead of time for every GPU generation, and read what it takes; needs no GPU.

Each case calls a launcher on tensors without data, under a driver that stands for the target. So what is compiled is
what the launcher would run there, with Triton's own specialisation of its arguments. Exit code 1 if a kernel spills
registers to the stack, asks for more shared memory than a block may have, or multiplies half precision without Hopper's
tensor cores; and, with the Triton that ``results/compile.json`` was stored with, if a main loop is over 5 % longer or
shorter than it says. That file also names the versions of Triton under which all kernels were checked (``checked``).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compile_known import Known, again, watch
from compile_measure import LIMITS, configuration, measure
from machine import needs_triton, store

STORED = Path(__file__).with_name("results") / "compile.json"
#: Multiprocessors of the largest GPU of each generation: some launches are cut by their number.
PROCESSORS = {80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 188}
DRIFT = 0.05
PARTS = 4  # one target's cases are split into so many jobs, so that all processes end at about the same time

#: Kernels that may have no loop, and why. Of these the length of the whole program is held.
WITHOUT_LOOP = {
    "_add_layer_norm_fwd_kernel": "rows are one tile",
    "_add_rows_kernel": "a few tables are unrolled",
    "_bias_gelu_fwd_kernel": "one tile a program",
    "_decode_attention_merge_kernel": "its few splits are unrolled",
    "_dynamic_lookup_bwd_kernel": "one tile a program",
    "_nearest_code_certify_kernel": "its few stretches are unrolled",
    "_nearest_code_round_kernel": "whole codes are one tile, and a small D is unrolled",
    "_nearest_code_survey_kernel": "one block of regions a program, where codes are not measured",
    "_patch_entropy_fwd_kernel": "a small patch is unrolled",
    "_take_entry_kernel": "nothing is cut off without top_k and top_p",
}
#: Kernels that need not use Hopper's warp-group products for half precision, and why.
WITHOUT_WGMMA = {"_decode_attention_fwd_kernel": "16 rows of queries; a warp group multiplies 64"}


class Driver:
    """What Triton asks of a GPU's driver in order to compile for it."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.arch, self.target = arch, GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> int:
        """The key of Triton's caches."""
        return self.arch

    def get_current_stream(self, device: int) -> int:
        """No stream: nothing runs."""
        return 0

    def get_current_target(self) -> Any:
        """What to compile for."""
        return self.target


def compiling(arch: int, seen: Callable[[Any, str, dict[str, Any], Any], None]) -> None:
    """From here on launches only compile, for ``arch``, and call ``seen(kernel, configuration, arguments, result)``."""
    import triton

    def compile_only(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            compiled = kernel.warmup(*args, grid=grid, **options)
            given = dict(zip(kernel.arg_names, args, strict=False)) | options
            seen(kernel, configuration(kernel, given, compiled), given, compiled)

        return launch

    triton.runtime.driver.set_active(Driver(arch))
    for name, module in list(sys.modules.items()):
        if name.startswith("dqcore.kernels.") and hasattr(module, "processors"):
            module.processors = lambda: PROCESSORS[arch]
    triton.runtime.jit.JITFunction.__getitem__ = compile_only


def check(
    arch: int, part: int = 0, parts: int = 1, known: dict[str, dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Compile every ``parts``-th case for one target, but not what ``known`` has; a row for each configuration."""
    import compile_attention
    import compile_lookup
    import compile_sampling
    import compile_transformer

    found: dict[tuple[str, str], tuple[Any, dict[str, Any], Any]] = {}

    def seen(kernel: Any, config: str, given: dict[str, Any], compiled: Any) -> None:
        found.setdefault((kernel.__name__, config), (kernel, given, compiled))

    known = {} if known is None else known
    watch(known)
    compiling(arch, seen)
    everything = (compile_lookup, compile_attention, compile_sampling, compile_transformer)
    for case in [case for module in everything for case in module.cases(arch)][part::parts]:
        case()
    numbers = iter(measure([one for one in found.values() if not isinstance(one[2], Known)]))
    rows = []
    for (name, config), (_, _, compiled) in found.items():
        row = {"kernel": name, "arch": arch, "config": config, "made_from": compiled.made_from}
        rows.append(row | (known[row["made_from"]] if isinstance(compiled, Known) else next(numbers)) | row)
    return rows


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each kernel that spills, would not launch, does not use wgmma or waits for each, or has no loop."""
    lines = []
    for row in rows:
        kernel = row["kernel"]
        single = row["wgmma_begun"] >= row["wgmma"] > row["products"]  # so ptxas says: "wgmma .. are serialized"
        slow = row["arch"] == 90 and row["half_products"] and row["wgmma"] < row["tensor_products"] + (not row["wgmma"])
        for bad, what in (
            (row["stack_bytes"] > 0, f"{row['stack_bytes']} bytes of stack"),
            (row["shared_bytes"] > LIMITS[row["arch"]], f"{row['shared_bytes']} bytes of shared memory"),
            (slow and kernel not in WITHOUT_WGMMA, "half-precision products without wgmma"),
            (single, "each step of a product by wgmma waits for the one before"),
            (row["instructions_per_element"] is None and kernel not in WITHOUT_LOOP, "no loop found"),
        ):
            if bad:
                lines.append(f"{kernel} on sm_{row['arch']}: {what} ({row['config']})")
    return lines


def moved(rows: list[dict[str, Any]], stored: list[dict[str, Any]]) -> list[str]:
    """One line for each main loop whose length differs by over 5 %, and for each row that only one side has."""
    now, then = ({(row["kernel"], row["arch"], row["config"]): row for row in side} for side in (rows, stored))
    lines = [f"{name} on sm_{arch}: not stored ({config})" for name, arch, config in now.keys() - then.keys()]
    lines += [f"{name} on sm_{arch}: only stored ({config})" for name, arch, config in then.keys() - now.keys()]
    for name, arch, config in now.keys() & then.keys():
        new, old = now[name, arch, config], then[name, arch, config]
        counts = ("instructions_per_element", "around_per_element")
        if new["instructions_per_element"] is None and old["instructions_per_element"] is None:
            counts = ("instructions",)
        for count in counts:
            if None in (new[count], old[count]) or abs(new[count] - old[count]) > DRIFT * old[count]:
                lines.append(f"{name} on sm_{arch}: {count} {old[count]} -> {new[count]} ({config})")
    return sorted(lines)


def unchanged(stored: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By digest the stored rows that need not be compiled as long as nothing that they were made from changed."""
    anew = [row.get("made_from") for row in again(stored)]
    return {row["made_from"]: row for row in stored if row.get("made_from") not in [*anew, None]}


def collect(archs: list[int], known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of these targets, compiled by one process a core where they are not ``known``.

    A cache of Triton is used if TRITON_CACHE_DIR names one, so that a second run takes less time.
    """
    os.environ.pop("TRITON_INTERPRET", None)
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as cache, concurrent.futures.ProcessPoolExecutor(cores, context) as pool:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)  # shared, so that what two parts launch is compiled once
        work = [pool.submit(check, arch, part, PARTS, known) for arch in archs for part in range(PARTS)]
        rows = [row for done in work for row in done.result()]
    unique = {(row["kernel"], row["arch"], row["config"]): row for row in rows}
    return [unique[key] for key in sorted(unique)]


def note(stored: dict[str, Any], version: str) -> None:
    """Write the stored table with today's date as the day on which this version of Triton was last found good."""
    stored["checked"] = dict(sorted((stored.get("checked", {}) | {version: f"{datetime.date.today()}"}).items()))
    store(STORED, {key: stored[key] for key in ("triton", "checked", "rows")})


def main() -> int:
    """Print the table, or write the rows as JSON; then what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON; - for standard output")
    parser.add_argument(
        "--update", action="store_true", help=f"write results/{STORED.name}, and hold nothing against it"
    )
    parser.add_argument(
        "--note",
        action="store_true",
        help=f"if nothing is wrong, note this Triton in results/{STORED.name}",
    )
    parser.add_argument(
        "--changed",
        action="store_true",
        help=f"compile what changed since results/{STORED.name} was written with this Triton, and a row of each kernel",
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=LIMITS, default=list(LIMITS))
    args = parser.parse_args()
    if (args.note or args.update) and set(args.arch) != set(LIMITS):
        parser.error("--arch: expected all targets with --update and --note, which stand for the whole table")
    needs_triton()
    import triton

    stored = json.loads(STORED.read_text())
    known = unchanged(stored["rows"]) if args.changed and stored["triton"] == triton.__version__ else {}
    rows = collect(args.arch, known)
    if args.update:
        stored |= {"triton": triton.__version__, "rows": rows}
        store(STORED, stored)
    record = json.dumps({"triton": triton.__version__, "rows": rows}, indent=1)
    if args.json == "-":
        print(record)
    elif args.json:
        Path(args.json).write_text(record + "\n")
    elif not args.update:
        for row in rows:
            numbers = f"{row['registers']:4} registers {row['stack_bytes']:5} stack {row['shared_bytes']:7} shared"
            loop = f"{row['instructions_per_element'] or math.nan:8.2f} instructions an element"
            print(f"{row['kernel']:30} sm_{row['arch']:<4}{numbers} {loop}  {row['config']}")
    found = failures(rows)
    if stored["triton"] != triton.__version__:
        print(f"instructions are not held: stored with Triton {stored['triton']}, this is {triton.__version__}",
              file=sys.stderr)  # fmt: skip
    else:
        found += moved(rows, [row for row in stored["rows"] if row["arch"] in args.arch])
    for line in found:
        print(line, file=sys.stderr)
    if not found and (args.note or args.update):
        note(stored, triton.__version__)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
