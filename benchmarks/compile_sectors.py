"""Count the 32-byte sectors that memory-bound kernels touch, without a GPU, and hold them; see ``sectors.py``.

Two processes run the same launches at the sizes of the paper's tokenizer: one compiles them for sm_90, and its layouts
say which elements a warp loads together; one interprets them, which gives the addresses. For each case and kernel the
result is how many bytes its loads and stores move if L1 keeps nothing from one to the next (``moved``), how many bytes
lie in the distinct sectors of a launch (``floor``), and of the sectors that one instruction of a warp touches, which
share its lanes ask for (``used``). The codebook, which stays in L2, is left out. Exit code 1 if a case moves over 1.3
times its floor, or a number is 5 % more or less than ``results/sectors.json`` says.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARCH = 90
MOST = 1.3  # times the floor
DRIFT = 0.05
STORED = Path(__file__).with_name("results") / "sectors.json"
IMAGES, DIM, CODES, SIDE = 1, 256, 256, 16
FORMATS = {"NCHW": "contiguous_format", "channels-last": "channels_last"}
DTYPES = ("float32", "bfloat16")
#: Those whose time goes into moving what grows with the batch; the others belong to the scan.
KERNELS = (
    "_nearest_code_round_vectors_kernel", "_dynamic_lookup_fill_kernel", "_dynamic_lookup_bwd_kernel",
    "_code_sums_runs_kernel", "_code_sums_total_kernel",
)  # fmt: skip


def problem(form: str, dtype: str, device: str) -> Any:
    """Maps, grain map and codebook of a lookup with two granularities, half of the regions fine."""
    import torch

    memory, kind = getattr(torch, FORMATS[form]), getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator).to(kind)
        return (values.to(memory_format=memory) if len(shape) == 4 else values).to(device)

    maps = [normal(IMAGES, DIM, SIDE << g, SIDE << g) for g in range(2)]
    fine = torch.rand(IMAGES, SIDE**2, generator=generator).argsort(1) < SIDE**2 // 2
    grain = fine.long().view(IMAGES, SIDE, SIDE).to(device)
    return maps, grain, torch.randn(CODES, DIM, generator=generator).to(device)


def cases(device: str) -> dict[str, Callable[[], Any]]:
    """Launches by name; each returns its codebook, and its results, so that their memory stays theirs."""
    found: dict[str, Callable[[], Any]] = {}
    for form in FORMATS:
        for dtype in DTYPES:
            found[f"dynamic_lookup {form} {dtype}"] = lambda f=form, d=dtype: lookup(f, d, device)
            found[f"dynamic_lookup_backward {form} {dtype}"] = lambda f=form, d=dtype: backward(f, d, device)
    for dtype in DTYPES:
        found[f"code_sums {dtype}"] = lambda d=dtype: sums(d, device)
    return found


def lookup(form: str, dtype: str, device: str) -> Any:
    """Forward, without statistics; returns the codebook."""
    from dqcore.kernels.dynamic_lookup import dynamic_lookup_fwd

    maps, grain, codebook = problem(form, dtype, device)
    return codebook, dynamic_lookup_fwd(maps, grain, codebook, False)


def backward(form: str, dtype: str, device: str) -> Any:
    """Both gradients."""
    import torch

    from dqcore.kernels.dynamic_lookup import dynamic_lookup_bwd

    maps, grain, codebook = problem(form, dtype, device)
    quantized, grad_quantized = torch.ones_like(maps[-1]), torch.ones_like(maps[-1])
    codes = torch.zeros(IMAGES, 2 * SIDE, 2 * SIDE, dtype=torch.int64, device=device)
    grad_error = torch.ones(codes.shape, device=device)
    return codebook, dynamic_lookup_bwd(maps, grain, codes, quantized, grad_quantized, grad_error)


def sums(dtype: str, device: str) -> Any:
    """Rows with a code each; of two codes, so that there are whole runs of one."""
    import torch

    from dqcore.kernels.code_sums import code_sums_fwd

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, DIM, generator=generator).to(getattr(torch, dtype)).to(device)
    codes = torch.randint(0, 2, (2048,), generator=generator).to(device)
    return torch.empty(0), code_sums_fwd(x, codes, 2)


def compiled() -> dict[str, list[tuple[str, dict]]]:
    """For each case its launches in order: the kernel's name, and the layouts of its accesses."""
    import compile_check
    import sectors

    import dqcore.kernels.code_sums
    import dqcore.kernels.dynamic_lookup  # noqa: F401  (imported before `compiling` replaces what launchers ask)

    launches: list[tuple[str, dict]] = []
    compile_check.compiling(
        ARCH, lambda kernel, _, __, result: launches.append((kernel.__name__, sectors.layouts(result.asm["ttgir"])))
    )
    found = {}
    for name, case in cases("meta").items():
        launches.clear()
        case()
        found[name] = list(launches)
    return found


def watch() -> list[list[tuple]]:
    """From here on every load and store of an interpreted kernel is noted, a list for each launch."""
    import triton.runtime.interpreter as interpreter

    launches: list[list[tuple]] = []
    builder, run = interpreter.InterpreterBuilder, interpreter.GridExecutor.__call__
    load, store = builder.create_masked_load, builder.create_masked_store

    def note(ptrs: Any, mask: Any) -> None:
        if ptrs.data.size > 1:
            size = ptrs.get_element_ty().primitive_bitwidth // 8
            launches[-1].append((place(), ptrs.data.copy(), mask.data.copy(), size))

    def noted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        note(ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def noted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    def launch(self: Any, *args: Any, **options: Any) -> Any:
        launches.append([])
        return run(self, *args, **options)

    builder.create_masked_load, builder.create_masked_store = noted_load, noted_store
    builder.create_store = lambda self, ptr, val, *_: noted_store(
        self, ptr, val, interpreter.TensorHandle(interpreter.np.ones_like(ptr.data, dtype=bool), interpreter.tl.int1),
        None, None,
    )  # fmt: skip
    interpreter.GridExecutor.__call__ = launch
    return launches


def place() -> tuple:
    """Lines of the kernels' sources that led here, from within outwards."""
    frame, found = sys._getframe(2), []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent.name == "kernels":
            found.append((path.name, frame.f_lineno, frame.f_code.co_name))
            if found[-1][2].endswith("_kernel"):
                break
        frame = frame.f_back
    return tuple((name, line) for name, line, _ in found)


def measured(layouts: dict[str, list[tuple[str, dict]]]) -> dict[str, Any]:
    """Run every case in the interpreter and count."""
    launches, found = watch(), {}
    for name, case in cases("cpu").items():
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
        moved, floor = (sum(row[field] for row in rows.values()) for field in ("moved", "floor"))
        found[name] = {"moved": moved, "floor": floor, "ratio": round(moved / floor, 3), "kernels": rows}
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
        shape, layout = known[where]
        assert addresses.shape == shape, (where, addresses.shape, shape)
        one, touched = sectors.count(layout, addresses, own, size)
        moved += sectors.SECTOR * touched.size
        distinct.append(touched)
        line = f"{where[0][0]}:{where[0][1]}"
        lines[line] = lines.get(line, sectors.Count(0, 0, 0)) + one
    used = {line: round(one.asked / one.sectors / sectors.SECTOR, 3) for line, one in sorted(lines.items())}
    return {"moved": moved, "floor": sectors.SECTOR * np.unique(np.concatenate(distinct)).size, "used": used}


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
    """One line for each case that moves too much."""
    return [
        f"{name}: moves {case['ratio']} times its floor, at most {MOST}"
        for name, case in found.items()
        if case["ratio"] > MOST
    ]


def drifted(found: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """One line for each number that moved by over 5 %, and for each case that only one side has."""
    lines = [f"{name}: only on one side" for name in found.keys() ^ stored.keys()]
    for name in found.keys() & stored.keys():
        new, old = ({"all": case} | case["kernels"] for case in (found[name], stored[name]))
        lines += [f"{name}: {kernel} only on one side" for kernel in new.keys() ^ old.keys()]
        for kernel in new.keys() & old.keys():
            now, then = new[kernel]["moved"], old[kernel]["moved"]
            if abs(now - then) > DRIFT * then:
                lines.append(f"{name}: {kernel} moves {now} bytes, stored are {then}")
    return sorted(lines)


def main(given: list[str] | None = None) -> int:
    """Print the table, or store it; then what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help=f"write results/{STORED.name}")
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
    import triton

    found = collect()
    for name, case in found.items():
        print(f"{name:45} moved {case['moved'] / 2**20:8.2f} MiB, {case['ratio']:.2f} times the floor")
        for kernel, row in case["kernels"].items():
            print(f"    {kernel:40} {row['moved'] / 2**20:8.2f} MiB, floor {row['floor'] / 2**20:8.2f}  {row['used']}")
    wrong = failures(found)
    if args.update:
        STORED.write_text(json.dumps({"triton": triton.__version__, "cases": found}, indent=1) + "\n")
    elif STORED.exists():
        stored = json.loads(STORED.read_text())
        wrong += drifted(found, stored["cases"]) if stored["triton"] == triton.__version__ else []
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
