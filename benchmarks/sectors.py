"""How many 32-byte sectors each load and store of a warp touches: the layout is compiled, the addresses interpreted."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

SECTOR = 32  # bytes that device memory, L2 and L1 move at least
WIDEST = 16  # bytes that one thread loads or stores with one instruction, at most

#: Where in the sources an access stands: (file, first line of the statement), from within outwards.
Place = tuple[tuple[str, int], ...]


class BlockedLayout(NamedTuple):
    """How a tensor lies in the registers of a block: Triton's blocked layout, dimensions that were cut off left out."""

    registers: tuple[int, ...]  # elements of a thread, along each dimension
    lanes: tuple[int, ...]
    warps: tuple[int, ...]
    fastest: int | None  # the dimension along which a thread's elements follow each other

    def groups(self, shape: tuple[int, ...], width: int) -> np.ndarray:
        """Which instruction of which warp each element belongs to; ``width`` elements of a thread make one."""
        group = np.zeros(shape, np.int64)
        for axis, size in enumerate(shape):
            place = np.arange(size).reshape([-1 if i == axis else 1 for i in range(len(shape))])
            tile = self.registers[axis] * self.lanes[axis] * self.warps[axis]
            register = place % self.registers[axis]
            if axis == self.fastest:
                register = register // width
            warp = place % tile // (self.registers[axis] * self.lanes[axis])
            own = (place // tile * self.warps[axis] + warp) * self.registers[axis] + register
            group = group * (int(own.max(initial=0)) + 1) + own
        return group


def layouts(ttgir: str) -> dict[tuple[Place, tuple[int, ...]], BlockedLayout | None]:
    """The layout of every tensor that the compiled kernel loads or stores, by the access's place and shape.

    A loop that is unrolled may come by a place with several shapes.
    """
    aliases = dict(re.findall(r"^(#\w+) = (#ttg\.\w+<\{.*\}>)$", ttgir, re.MULTILINE))
    locs = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttgir, re.MULTILINE))
    found = {}
    for kind in (r"tt\.load .*: tensor<", r"tt\.store .*: tensor<"):
        for sizes, layout, loc in re.findall(kind + r"([\dx]+)x!tt\.ptr<\w+>, (.*)> loc\((#loc\d*)\)", ttgir):
            shape = tuple(map(int, sizes.split("x")))
            found[_place(locs, loc), shape] = _layout(layout, aliases)
    return found


def first_line(name: str, line: int) -> int:
    """Where the statement begins that has this line: of a call over several lines each Triton names another one."""
    return _first_lines(name).get(line, line)


@functools.cache
def _first_lines(name: str) -> dict[int, int]:
    path = Path(__file__).parents[1] / "kernels" / name
    if not path.is_file():
        return {}
    statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt)]
    return {line: one.lineno for one in statements for line in range(one.lineno, (one.end_lineno or one.lineno) + 1)}


def _place(locs: dict[str, str], loc: str) -> Place:
    text = locs.get(loc, "unknown")
    if match := re.fullmatch(r"callsite\((#loc\d*) at (#loc\d*)\)", text):
        return _place(locs, match[1]) + _place(locs, match[2])
    if match := re.fullmatch(r'"[^"]*?([^"/]+\.py)":(\d+):\d+.*', text):
        return ((match[1], first_line(match[1], int(match[2]))),)
    if match := re.fullmatch(r'"[^"]*"\((#loc\d*)\)', text):
        return _place(locs, match[1])
    return ()


def _layout(text: str, aliases: dict[str, str]) -> BlockedLayout | None:
    """A blocked layout, or what is left of one without some dimensions; None for other layouts, as of products."""
    cut = []
    while match := re.fullmatch(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>", text):
        cut.append(int(match[1]))
        text = match[2]
    text = aliases.get(text, text)
    fields = {name: [int(n) for n in re.findall(r"\d+", numbers)]
              for name, numbers in re.findall(r"(\w+) = \[([\d, ]*)\]", text)}  # fmt: skip
    if not text.startswith("#ttg.blocked"):
        return None
    order, sizes = fields["order"], [fields[name] for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA")]
    axes = list(range(len(order)))
    for dim in reversed(cut):  # the outermost slice was cut last
        del axes[dim]
    fastest = axes.index(order[0]) if order[0] in axes else None
    return BlockedLayout(*(tuple(size[axis] for axis in axes) for size in sizes), fastest)


class Count(NamedTuple):
    """What one access does in one program, or several of them together."""

    accesses: int  # instructions of warps
    sectors: int  # that these touch, each instruction counted by itself
    asked: int  # bytes that its lanes ask for, each address once an instruction

    def __add__(self, other: Count) -> Count:  # type: ignore[override]
        return Count(*(a + b for a, b in zip(self, other, strict=True)))


def count(layout: BlockedLayout, addresses: np.ndarray, mask: np.ndarray, size: int) -> tuple[Count, np.ndarray]:
    """What a warp's accesses touch, and the distinct sectors of all of them."""
    width = max(1, min(layout.registers[layout.fastest] if layout.fastest is not None else 1, WIDEST // size))
    group = layout.groups(addresses.shape, width)[mask].astype(np.uint64)
    address = addresses[mask].astype(np.uint64)
    if address.size == 0:
        return Count(0, 0, 0), address
    base = address.min() // SECTOR * SECTOR
    span = np.uint64(int(address.max() - base) + SECTOR)
    sectors = np.unique(group * span + (address - base) // SECTOR)
    asked = np.unique(group * span + (address - base)).size * size
    return Count(np.unique(group).size, sectors.size, asked), np.unique(address // SECTOR)
