"""Count the 32-byte sectors that memory-bound kernels touch, without a GPU, and hold them; see ``sectors.py``.

Two processes run the same launches at the sizes of the paper's tokenizer: one compiles them for sm_90, whose layouts say
which elements a warp loads together, and one interprets them, which gives the addresses. For each case and each tensor
that grows with the batch the result is how many bytes cross between multiprocessors and L2 if nothing is found in L1
(``moved``), and how many there are in its distinct sectors (``floor``). Exit code 1 if a case moves over 1.3 times its
floor, or 5 % more or less than ``results/sectors.json`` says.
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


def problem(form: str, dtype: str, device: str) -> dict[str, Any]:
    """Named tensors of one lookup with two granularities, half of the regions fine."""
    import torch

    memory, kind = getattr(torch, FORMATS[form]), getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator).to(kind)
        return (values.to(memory_format=memory) if len(shape) == 4 else values).to(device)

    maps = [normal(IMAGES, DIM, SIDE << g, SIDE << g) for g in range(2)]
    fine = torch.rand(IMAGES, SIDE**2, generator=generator).argsort(1) < SIDE**2 // 2
    grain = fine.long().view(IMAGES, SIDE, SIDE).to(device)
    return {"maps": maps, "grain": grain, "codebook": normal(CODES, DIM)}


def cases(device: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Launches by name; each returns the tensors to be watched."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for form in FORMATS:
        for dtype in DTYPES:
            found[f"dynamic_lookup {form} {dtype}"] = lambda f=form, d=dtype: lookup(f, d, device)
            found[f"dynamic_lookup_backward {form} {dtype}"] = lambda f=form, d=dtype: backward(f, d, device)
    for dtype in DTYPES:
        found[f"code_sums {dtype}"] = lambda d=dtype: sums(d, device)
    return found


def lookup(form: str, dtype: str, device: str) -> dict[str, Any]:
    """Forward, without statistics."""
    from dqcore.kernels.dynamic_lookup import dynamic_lookup_fwd

    given = problem(form, dtype, device)
    codes, quantized, error, *_ = dynamic_lookup_fwd(given["maps"], given["grain"], given["codebook"], False)
    return {"map 0": given["maps"][0], "map 1": given["maps"][1], "codes": codes, "quantized": quantized,
            "error": error}  # fmt: skip


def backward(form: str, dtype: str, device: str) -> dict[str, Any]:
    """Both gradients."""
    import torch

    from dqcore.kernels.dynamic_lookup import dynamic_lookup_bwd

    given = problem(form, dtype, device)
    maps, quantized = given["maps"], torch.ones_like(given["maps"][-1])
    grad_quantized, grad_error = torch.ones_like(quantized), torch.ones(IMAGES, 2 * SIDE, 2 * SIDE, device=device)
    codes = torch.zeros(IMAGES, 2 * SIDE, 2 * SIDE, dtype=torch.int64, device=device)
    grads = dynamic_lookup_bwd(maps, given["grain"], codes, quantized, grad_quantized, grad_error)
    return {"map 0": maps[0], "map 1": maps[1], "codes": codes, "quantized": quantized, "grad error": grad_error,
            "grad quantized": grad_quantized, "grad 0": grads[0], "grad 1": grads[1]}  # fmt: skip


def sums(dtype: str, device: str) -> dict[str, Any]:
    """Rows with a code each."""
    import torch

    from dqcore.kernels.code_sums import code_sums_fwd

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, DIM, generator=generator).to(getattr(torch, dtype)).to(device)
    codes = torch.randint(0, 32, (2048,), generator=generator).to(device)
    code_sums_fwd(x, codes, 32)
    return {"rows": x}


def compiled() -> dict[str, list[tuple[str, dict]]]:
    """For each case its launches in order: the kernel's name, and the layouts of its accesses."""
    import compile_check
    import sectors
    from triton.runtime.jit import JITFunction

    import dqcore.kernels.code_sums
    import dqcore.kernels.dynamic_lookup  # noqa: F401  (imported before `compiling` replaces what launchers ask)

    launches: list[tuple[str, dict]] = []
    compile_check.compiling(
        ARCH, lambda kernel, _, __, result: launches.append((kernel.__name__, sectors.layouts(result.asm["ttgir"])))
    )
    assert JITFunction is not None
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
            if frame.f_code.co_name in LAUNCHERS or not frame.f_code.co_name.islower():
                break
            found.append((path.name, frame.f_lineno, frame.f_code.co_name))
            if found[-1][2].endswith("_kernel"):
                break
        frame = frame.f_back
    return tuple((name, line) for name, line, _ in found)


LAUNCHERS = ()


def measured(layouts: dict[str, list[tuple[str, dict]]]) -> dict[str, Any]:
    """Run every case in the interpreter and count."""
    import numpy as np
    import sectors

    launches, found = watch(), {}
    for name, case in cases("cpu").items():
        launches.clear()
        tensors = case()
        assert len(launches) == len(layouts[name]), (name, len(launches), len(layouts[name]))
        ranges = {what: (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for what, t in tensors.items()}
        rows: dict[str, dict[str, Any]] = {}
        seen: dict[str, list] = {}
        for noted, (kernel, known) in zip(launches, layouts[name], strict=True):
            for where, addresses, mask, size in noted:
                for owner, (begin, end) in ranges.items():
                    own = mask & (addresses >= begin) & (addresses < end)
                    if not own.any():
                        continue
                    shape, layout = known[where]
                    assert addresses.shape == shape, (kernel, where, addresses.shape, shape)
                    one, distinct = sectors.count(layout, addresses, own, size)
                    row = rows.setdefault(f"{kernel} {owner}", {"sectors": 0, "asked": 0, "accesses": 0})
                    for field in row:
                        row[field] += getattr(one, field)
                    seen.setdefault(owner, []).append(distinct)
        floor = {what: sectors.SECTOR * np.unique(np.concatenate(parts)).size for what, parts in seen.items()}
        moved = sectors.SECTOR * sum(row["sectors"] for row in rows.values())
        found[name] = {
            "moved": moved,
            "floor": sum(floor.values()),
            "ratio": round(moved / sum(floor.values()), 3),
            "rows": {
                key: {"sectors_an_access": round(row["sectors"] / row["accesses"], 2),
                      "share_of_sectors_asked": round(row["asked"] / row["sectors"] / sectors.SECTOR, 3)}
                for key, row in sorted(rows.items())
            },
        }  # fmt: skip
    return found


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
        new, old = found[name], stored[name]
        for field in ("moved", "floor"):
            if abs(new[field] - old[field]) > DRIFT * old[field]:
                lines.append(f"{name}: {field} {old[field]} -> {new[field]}")
    return sorted(lines)


def main() -> int:
    """Print the table, or store it; then what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help=f"write results/{STORED.name}")
    parser.add_argument("--step", choices=("layouts", "measured"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
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
        for key, row in case["rows"].items():
            print(f"    {key:60} {row['sectors_an_access']:6.2f} sectors an access, {row['share_of_sectors_asked']:.2f} of them asked for")
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
