"""Compile every Triton kernel ahead of time for every GPU generation, and read what it takes; needs no GPU.

Each case calls a launcher on tensors without data, under a driver that stands for the target: so what is compiled is
what the launcher would run there, with Triton's own specialisation of its arguments. Exit code 1 if a kernel spills
registers to the stack or asks for more shared memory than a block may have.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Shared memory that a block may have, by compute capability, bytes.
LIMITS = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


def cases(arch: int) -> Iterator[Callable[[], Any]]:
    """The launches that ship: each stem at the sizes of the paper's models and at the ends of their range."""
    import compile_attention
    import torch
    from torch import Tensor

    from dqcore.kernels import code_sums, dynamic_lookup, nearest_code, patch_entropy
    from dqcore.ops.patch_entropy import GREY, NO_MASS

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def nearest(dim: int, dtype: torch.dtype, precision: str = "exact") -> Callable[[], Any]:
        x, codebook = empty(8, dim, 32, 32, dtype=dtype), empty(1024, dim, dtype=dtype)
        return lambda: nearest_code.nearest_code_fwd(x, codebook, precision)

    def lookup(num_granularities: int, dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
        maps = [empty(8, 256, 16 * 2**g, 16 * 2**g, dtype=dtype) for g in range(num_granularities)]
        grain, codebook = empty(8, 16, 16, dtype=torch.int64), empty(1024, 256)
        yield lambda: dynamic_lookup.dynamic_lookup_fwd(maps, grain, codebook, True)
        yield lambda: dynamic_lookup.dynamic_lookup_bwd(maps, grain, maps[-1], maps[-1], maps[-1][:, 0])

    for dim in (8, 256, 257):
        yield nearest(dim, torch.float32)
    yield nearest(8, torch.bfloat16)
    yield nearest(256, torch.bfloat16)
    yield nearest(256, torch.float16)
    yield nearest(256, torch.float32, "fast")
    yield lambda: code_sums.code_sums_fwd(empty(8192, 256), empty(8192, dtype=torch.int64), 1024)
    for dtype, num_granularities in ((torch.float32, 2), (torch.bfloat16, 3)):
        yield from lookup(num_granularities, dtype)
    for patch in (8, 16):
        yield lambda patch=patch: patch_entropy.patch_entropy_fwd(
            empty(8, 3, 256, 256), patch, -1.0, 1.0, 32, 0.01, GREY, NO_MASS
        )
    yield from compile_attention.cases(arch)


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


def check(arch: int) -> list[dict[str, Any]]:
    """Compile all cases for one target: a row for each kernel and configuration."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        import compile_attention
        import triton

        triton.runtime.driver.set_active(Driver(arch))
        rows: dict[str, dict[str, Any]] = {}

        def compile_only(kernel: Any, grid: Any) -> Callable[..., None]:
            def launch(*args: Any, **options: Any) -> None:
                compiled = kernel.warmup(*args, grid=grid, **options)
                config = _config(kernel, args, options)
                row = _row(kernel.__name__, arch, config, compiled)
                if arch == 90 and "KEEP" in options:
                    row |= compile_attention.inner_loop(compiled, options["BLOCK_M"] * options["BLOCK_N"])
                rows.setdefault(f"{kernel.__name__} {config}", row)

            return launch

        triton.runtime.jit.JITFunction.__getitem__ = compile_only
        for case in cases(arch):
            case()
        return list(rows.values())


def _config(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """The constants, the options and the tensors' types, as text."""
    import torch

    given = dict(zip(kernel.arg_names, args, strict=False)) | options
    constants = {param.name for param in kernel.params if param.is_constexpr}
    words = []
    for name, value in given.items():
        if isinstance(value, torch.Tensor):
            words.append(f"{name}:{str(value.dtype).removeprefix('torch.')}")
        elif value is None or name in constants or name not in kernel.arg_names:
            words.append(f"{name}={value}")
    return " ".join(words)


def _row(name: str, arch: int, config: str, compiled: Any) -> dict[str, Any]:
    usage = resource_usage(compiled.asm["cubin"])
    return {
        "kernel": name,
        "arch": arch,
        "config": config,
        "registers": usage["REG"],
        "stack_bytes": usage["STACK"] + usage["LOCAL"],
        "shared_bytes": compiled.metadata.shared,
        "shared_limit": LIMITS[arch],
        "num_warps": compiled.metadata.num_warps,
    }


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of a compiled kernel, read by the cuobjdump that Triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each kernel that spills or would not launch."""
    return [
        f"{row['kernel']} on sm_{row['arch']}: {what} ({row['config']})"
        for row in rows
        for bad, what in (
            (row["stack_bytes"] > 0, f"{row['stack_bytes']} bytes of stack"),
            (row["shared_bytes"] > LIMITS[row["arch"]], f"{row['shared_bytes']} bytes of shared memory"),
        )
        if bad
    ]


def main() -> int:
    """Print the table, or write the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON; - for standard output")
    parser.add_argument("--arch", type=int, nargs="+", choices=LIMITS, default=list(LIMITS))
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        rows = [row for part in pool.map(check, args.arch) for row in part]
    if args.json == "-":
        print(json.dumps(rows, indent=1))
    elif args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    else:
        for row in rows:
            numbers = f"{row['registers']:4} registers {row['stack_bytes']:5} stack {row['shared_bytes']:7} shared"
            print(f"{row['kernel']:26} sm_{row['arch']:<4}{numbers}  {row['config']}")
    for line in (found := failures(rows)):
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
