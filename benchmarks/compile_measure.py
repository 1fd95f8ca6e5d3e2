"""What a compiled kernel takes and does, and the words that tell one compiled kernel from another."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import sass

#: Shared memory that a block may have, by compute capability, bytes.
LIMITS = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}

#: Constants whose product is the number of elements that one turn of a kernel's main loop works on. For other kernels
#: it is the product of all BLOCK_* constants; without any, one element a thread.
ELEMENTS = {
    "_nearest_code_scan_kernel": ("BLOCK_N", "BLOCK_K"),
    "_nearest_code_rescan_kernel": ("BLOCK_N", "BLOCK_K"),
    "_nearest_code_round_kernel": ("BLOCK_N", "BLOCK_D"),
    "_nearest_code_settle_kernel": ("BLOCK_K", "WIDTH"),
    "_varlen_attention_fwd_kernel": ("BLOCK_M", "BLOCK_N"),
    "_varlen_attention_dq_kernel": ("BLOCK_M", "BLOCK_N"),
    "_varlen_attention_dkv_kernel": ("BLOCK_M", "BLOCK_N"),
    "_decode_attention_fwd_kernel": ("BLOCK_M", "BLOCK_N"),
    "_draw_kernel": ("BLOCK",),
    "_draw_long_kernel": ("BLOCK",),
    "_take_content_kernel": ("BLOCK",),
    "_take_content_long_kernel": ("BLOCK",),
    "_take_entry_kernel": ("BLOCK",),
    "_take_entry_long_kernel": ("BLOCK",),
}


def measure(found: list[tuple[Any, dict[str, Any], Any]]) -> list[dict[str, Any]]:
    """What kernels take and do: the numbers of their rows.

    Args:
        found: Kernels with their arguments by name and what they were compiled to, all for one target.
    """
    if not found:
        return []
    cubins = [compiled.asm["cubin"] for _, _, compiled in found]
    codes = sass.programs(cubins, found[0][2].metadata.target.arch)
    return [_measure(*one, code) for one, code in zip(found, codes, strict=True)]


def _measure(kernel: Any, given: dict[str, Any], compiled: Any, code: list[sass.Instruction]) -> dict[str, Any]:
    target, warps = compiled.metadata.target.arch, compiled.metadata.num_warps
    usage = sass.resources(compiled.asm["cubin"])
    loop = sass.main_loop(code, products="tt.dot " in compiled.asm["ttir"])
    sizes = ELEMENTS.get(kernel.__name__) or [name for name in given if name.startswith("BLOCK_")]
    share = math.prod(given[name] for name in sizes) / (32 * warps) if sizes else 1
    return {
        "registers": usage["REG"],
        "stack_bytes": usage["STACK"] + usage["LOCAL"],
        "shared_bytes": compiled.metadata.shared,
        "shared_limit": LIMITS[target],
        "num_warps": warps,
        "instructions": len(code),
        "instructions_per_element": round(loop[0] / share, 3) if loop else None,
        "around_per_element": round(loop[1] / share, 3) if loop else None,
        "half_products": len(re.findall(r"tt\.dot .*: tensor<[0-9x]*xb?f16", compiled.asm["ttir"])),
        "products": compiled.asm["ttir"].count("tt.dot "),
        "wgmma": sum(bool(sass.WARP_GROUP.search(line.text)) for line in code),
        "wgmma_begun": sum("WARPGROUP.ARRIVE" in line.text for line in code),
        "tensor_products": sum(bool(sass.TENSOR.search(line.text)) for line in code),
    }


def configuration(kernel: Any, given: dict[str, Any], compiled: Any) -> str:
    """All that decides what is compiled: constants, options, types of tensors, and which numbers were specialised."""
    import torch

    constants = {param.name for param in kernel.params if param.is_constexpr}
    words, fixed, even = [], [], []
    for name, value in given.items():
        if name in constants or name not in kernel.arg_names:
            fields = value._asdict() if hasattr(value, "_asdict") else {name: value}
            words += [f"{field}={one}" for field, one in fields.items()]
            continue
        for place, one in _leaves(value, (kernel.arg_names.index(name),)):
            # a tensor that comes with its strides keeps its name, others of a tuple are numbered
            word = ".".join([name, *map(str, place[1:])]) if place[1:] != (0,) else name
            if isinstance(one, torch.Tensor):
                words.append(f"{word}:{str(one.dtype).removeprefix('torch.')}")
            elif one is None:
                words.append(f"{word}=None")
            elif isinstance(one, int) and place in compiled.src.constants:
                fixed.append(f"{word}=1")
            elif isinstance(one, int) and compiled.src.attrs.get(place):
                even.append(f"16|{word}")
    return " ".join([*words, *fixed, *even])


def _leaves(value: Any, place: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Any]]:
    """What an argument holds, tuples taken apart, and its place as Triton counts it."""
    if isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from _leaves(part, (*place, i))
    else:
        yield place, value


def show(rows: list[tuple[str, dict[str, Any]]], compiled: list[list[dict[str, Any]]]) -> None:
    """Print a line for each candidate: what it takes, or why it is left out."""
    for (stem, when), offered in zip(rows, compiled, strict=True):
        print(f"{stem} {when}")
        for row in offered:
            most = max(row["compiled"], key=lambda one: one["registers"], default=None)
            words = " ".join(f"{name}={value}" for name, value in row["config"].items())
            numbers = ""
            if most:
                numbers = f"{most['registers']:4} registers {most['shared_bytes']:7} shared {resident(most)} resident "
                numbers += f"{most['instructions_per_element']} + {most['around_per_element']} an element"
            print(f"  {words:75} {numbers} {row['left_out'] or ''}")


def resident(row: dict[str, Any]) -> int:
    """How many blocks a multiprocessor holds at once, as limited by registers, shared memory and warps."""
    registers = 65536 // (32 * row["num_warps"] * -(-row["registers"] // 8) * 8)
    return min(registers, row["shared_limit"] // (row["shared_bytes"] + 1024), 64 // row["num_warps"])
