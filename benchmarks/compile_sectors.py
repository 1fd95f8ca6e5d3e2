"""Count the 32-byte sectors that memory-bound kernels touch, without a GPU, and hold them; see ``sectors.py``.

Two processes run the same launches at the sizes of the paper's tokenizer: one compiles them for sm_90, and its layouts
say which elements a warp loads together; one interprets them, which gives the addresses. For each case and kernel the
result is how many bytes its loads and stores move if L1 keeps what one of them touches until it is done (``moved``),
how many if L1 keeps nothing from one instruction of a warp to the next (``apart``), how many bytes lie in the distinct
sectors of a launch (``floor``), and which share of the sectors that an instruction touches its lanes ask for
(``used``). The codebook, which stays in L2, is left out. Exit code 1 if a case moves over 1.3 times its floor, or over
twice if L1 keeps nothing, or a number is 5 % more or less than ``results/sectors.json`` says. That file also names the
versions of Triton under which nothing was wrong (``checked``): lanes may lie otherwise under each.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from machine import needs_triton, store

ARCH = 90
#: Times the floor.
MOST = {"moved": 1.3, "apart": 2.0}
DRIFT = 0.05
STORED = Path(__file__).with_name("results") / "sectors.json"
#: Those whose time goes into moving what grows with the batch; the others belong to the scan.
KERNELS = (
    "_nearest_code_round_kernel", "_dynamic_lookup_fill_kernel", "_dynamic_lookup_bwd_kernel",
    "_code_sums_runs_kernel", "_code_sums_total_kernel",
)  # fmt: skip


class Layouts(NamedTuple):
    """Stands for a compiled kernel, as far as it is compiled."""

    src: Any
    asm: dict[str, str]


def no_further_than_layouts() -> None:
    """From here on Triton stops at the layouts, which takes a third of the time, and skips all but `KERNELS`."""
    import triton
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.compiler.compiler import compile as compile_whole

    class Found(Exception):
        pass

    def stop(backend: Any, module: Any, *_: Any) -> None:
        raise Found(str(module))

    def compile_layouts(src: Any, target: Any, options: dict[str, Any]) -> Layouts:
        text = ""
        if src.fn.__name__ in KERNELS:
            try:
                text = compile_whole(src, target=target, options=options).asm["ttgir"]
            except Found as found:
                text = str(found)
        return Layouts(src, {"ttgir": text})

    CUDABackend.make_llir = stop
    triton.compiler.compile = compile_layouts  # where each kernel looks it up when it is first launched


def compiled() -> dict[str, list[tuple[str, dict]]]:
    """For each case its launches in order: the kernel's name, and the layouts of its accesses."""
    import compile_check
    import sector_cases
    import sectors

    import dqcore.kernels.code_sums
    import dqcore.kernels.dynamic_lookup  # noqa: F401  (imported before `compiling` replaces what launchers ask)

    launches: list[tuple[str, dict]] = []
    no_further_than_layouts()
    compile_check.compiling(
        ARCH, lambda kernel, _, __, result: launches.append((kernel.__name__, sectors.layouts(result.asm["ttgir"])))
    )
    found = {}
    for name, case in sector_cases.cases("meta").items():
        launches.clear()
        case()
        found[name] = list(launches)
    return found


def measured(layouts: dict[str, list[tuple[str, dict]]]) -> dict[str, Any]:
    """Run every case in the interpreter and count."""
    import sector_cases

    launches, found = sector_cases.watch(), {}
    for name, case in sector_cases.cases("cpu").items():
        launches.clear()
        codebook, _ = case()
        assert len(launches) == len(layouts[name]), (name, len(launches), len(layouts[name]))
        begin = codebook.data_ptr()
        small = (begin, begin + codebook.numel() * codebook.element_size())
        rows = {
            kernel: counted(noted, known, small)
            for noted, (kernel, known) in zip(launches, layouts[name], strict=True)
            if kernel in KERNELS
        }
        whole = {field: sum(row[field] for row in rows.values()) for field in (*MOST, "floor")}
        found[name] = whole | {"kernels": rows}
    return found


def counted(noted: list[tuple], known: dict, small: tuple[int, int]) -> dict[str, Any]:
    """What one launch moves, and the shares of its loads and stores that lanes asked for, by line of the source."""
    import numpy as np
    import sectors

    moved, distinct = 0, []
    lines: dict[str, sectors.Count] = {}
    for where, addresses, mask, size in noted:
        own = mask & ((addresses < small[0]) | (addresses >= small[1]))
        if not own.any():
            continue
        if (where, addresses.shape) not in known:  # the compiler does the same once, for a call from elsewhere
            assert any((place[:1], shape) == (where[:1], addresses.shape) for place, shape in known), where
            continue
        layout = known[where, addresses.shape]
        one, touched = sectors.count(layout, addresses, own, size)
        moved += sectors.SECTOR * touched.size
        distinct.append(touched)
        line = f"{where[0][0]}:{where[0][1]}"
        lines[line] = lines.get(line, sectors.Count(0, 0, 0)) + one
    used = {line: round(one.asked / one.sectors / sectors.SECTOR, 3) for line, one in sorted(lines.items())}
    return {
        "moved": moved,
        "apart": sectors.SECTOR * sum(one.sectors for one in lines.values()),
        "floor": sectors.SECTOR * np.unique(np.concatenate(distinct)).size,
        "used": used,
    }


def collect() -> dict[str, Any]:
    """Both processes, one after the other."""
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    env.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as folder:
        for step, interpret in (("layouts", None), ("measured", "1")):
            own = env if interpret is None else env | {"TRITON_INTERPRET": interpret}
            subprocess.run([sys.executable, __file__, "--step", step, "--folder", folder], check=True, env=own)
        return json.loads((Path(folder) / "measured.json").read_text())


def failures(found: dict[str, Any]) -> list[str]:
    """One line for each number of a case that is too far over its floor."""
    return [
        f"{name}: {field} is {case[field] / case['floor']:.2f} times the floor, at most {most}"
        for name, case in found.items()
        for field, most in MOST.items()
        if case[field] > most * case["floor"]
    ]


def drifted(found: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """One line for each number that moved by over 5 %, and for each case that only one side has."""
    lines = [f"{name}: only on one side" for name in found.keys() ^ stored.keys()]
    for name in found.keys() & stored.keys():
        new, old = ({"all": case} | case["kernels"] for case in (found[name], stored[name]))
        lines += [f"{name}: {kernel} only on one side" for kernel in new.keys() ^ old.keys()]
        for kernel in new.keys() & old.keys():
            for field in MOST:
                now, then = new[kernel][field], old[kernel][field]
                if abs(now - then) > DRIFT * then:
                    lines.append(f"{name}: {kernel}, {field} is {now} bytes, stored are {then}")
    return sorted(lines)


def main(given: list[str] | None = None) -> int:
    """Print the table, or store it; then what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help=f"write results/{STORED.name}")
    parser.add_argument(
        "--note", action="store_true", help=f"if nothing is wrong, note this Triton in results/{STORED.name}"
    )
    parser.add_argument("--step", choices=("layouts", "measured"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.step == "layouts":
        (args.folder / "layouts.pickle").write_bytes(pickle.dumps(compiled()))
        return 0
    if args.step == "measured":
        layouts = pickle.loads((args.folder / "layouts.pickle").read_bytes())
        (args.folder / "measured.json").write_text(json.dumps(measured(layouts)))
        return 0
    needs_triton()
    import triton

    found, stored = collect(), json.loads(STORED.read_text())
    show(found)
    wrong = failures(found)
    if args.update:
        stored |= {"triton": triton.__version__, "cases": found}
    elif stored["triton"] == triton.__version__:
        wrong += drifted(found, stored["cases"])
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        stored["checked"] = dict(sorted((stored["checked"] | {triton.__version__: f"{datetime.date.today()}"}).items()))
    if args.update or (args.note and not wrong):
        store(STORED, {key: stored[key] for key in ("triton", "checked", "cases")})
    return 1 if wrong else 0


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    for name, case in found.items():
        print(f"{name:45} {numbers(case)}")
        for kernel, row in case["kernels"].items():
            print(f"    {kernel:41} {numbers(row)}  {row['used']}")


def numbers(row: dict[str, Any]) -> str:
    """Bytes of a case or of one of its kernels."""
    words = [
        f"{field} {row[field] / 2**20:6.2f} MiB, {row[field] / row['floor']:.2f} times the floor" for field in MOST
    ]
    return "; ".join(words)


if __name__ == "__main__":
    sys.exit(main())
