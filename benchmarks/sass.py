"""Read the machine code of compiled kernels with Triton's own tools: registers, stack, and the main loop."""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

#: Matrix products of the tensor cores: of a warp, of a warp group (sm_90), of one thread for all (sm_100).
TENSOR = re.compile(r"\b(HMMA|IMMA|DMMA|QMMA|OMMA|HGMMA|QGMMA|IGMMA|UTC\w*MMA)\b")
WARP_GROUP = re.compile(r"\bHGMMA\b")
SCALAR = re.compile(r"\b(FFMA2?|DFMA)\b")


class Instruction(NamedTuple):
    """One line of SASS."""

    address: int
    text: str


class Loop(NamedTuple):
    """A loop: the instructions from the target of a branch back to that branch, including all loops inside."""

    body: frozenset[int]
    own: int  # instructions of the body that lie in no loop within
    products: int


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory, in bytes, by cuobjdump's names REG, STACK, LOCAL."""
    text = _run("cuobjdump", cubin, "--dump-resource-usage")
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def programs(cubins: list[bytes], arch: int) -> list[list[Instruction]]:
    """The instructions of each of these cubins for sm_``arch``, which have one kernel each.

    All are read as one piece of code: of each call the disassembler needs three quarters of a second for itself. So
    their addresses go on from one to the next, and branches lead to such addresses, too.
    """
    codes = [_code(cubin) for cubin in cubins]
    text = _run("nvdisasm", b"".join(codes), "--binary", f"SM{arch}{'a' if arch >= 90 else ''}")
    every, found, start = instructions(text), [], 0
    for code in codes:
        found.append([line for line in every if start <= line.address < start + len(code)])
        start += len(code)
    return found


def instructions(text: str) -> list[Instruction]:
    """The instructions that a disassembler printed.

    For sm_120 the tool of CUDA 12.8 also prints how each is scheduled, ``&wr=0x0 ?trans1``, which is left out.
    """
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)(?:\s+[&?][^;]*)?\s*;", text)
    return [Instruction(int(address, 16), line) for address, line in found]


def _run(tool: str, binary: bytes, *options: str) -> str:
    """What one of Triton's tools prints of a file."""
    import triton

    path = Path(triton.__file__).parent / "backends/nvidia/bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run([path, *options, file.name], capture_output=True, text=True, check=True).stdout


def _code(cubin: bytes) -> bytes:
    """The section of an ELF file that holds the kernel's code."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, number, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<I20xQQ", cubin, table + i * size) for i in range(number)]
    for name, offset, length in sections:
        if cubin[sections[names][1] + name :].startswith(b".text."):
            return cubin[offset : offset + length]
    raise ValueError("cubin: it has no section .text.*")


def loops(code: list[Instruction], product: re.Pattern[str]) -> list[Loop]:
    """All natural loops, found by dominators.

    A branch back to a block that does not dominate it makes no loop: compilers move rare blocks behind the end.
    """
    blocks = _blocks(code)
    follow: list[list[int]] = [[] for _ in blocks]
    reached, rest = {0}, [0]
    while rest:  # the jump to itself that the assembler puts behind the end is never reached
        block = rest.pop()
        follow[block] = _successors(blocks[block][-1], block, blocks)
        rest += set(follow[block]) - reached
        reached |= set(follow[block])
    before = [[i for i, after in enumerate(follow) if j in after] for j in range(len(blocks))]
    dominators = _dominators(before)
    bodies: dict[int, set[int]] = {}  # by header
    for latch, after in enumerate(follow):
        for header in dominators[latch].intersection(after):
            body = bodies.setdefault(header, {header})
            rest = [latch]
            while rest:
                if (block := rest.pop()) not in body:
                    body.add(block)
                    rest += before[block]
    found = []
    for body in bodies.values():
        inner = set().union(*(other for other in bodies.values() if other < body))
        lines = [line for block in sorted(body) for line in blocks[block]]
        found.append(
            Loop(
                frozenset(line.address for line in lines),
                sum(len(blocks[block]) for block in body - inner),
                sum(bool(product.search(line.text)) for line in lines),
            )
        )
    return found


def main_loop(code: list[Instruction], products: bool) -> tuple[int, int] | None:
    """Length of the loop where the time goes, and of the rest of the loop around it (0 if none); None without loops.

    With ``products``, it is the innermost loop with most of them: tensor cores' products, or scalar ones if there are
    none. Of several it is the shortest, which works on the tiles without a mask. Without ``products`` it is the longest
    innermost loop. A loop that ptxas unrolled counts as it is, unrolled.
    """
    product = TENSOR if any(TENSOR.search(line.text) for line in code) else SCALAR
    every = loops(code, product)
    working = [loop for loop in every if loop.products] if products else every
    innermost = [loop for loop in working if not any(other.body < loop.body for other in working)]
    if not innermost:
        return None
    if products:
        main = min(innermost, key=lambda loop: (-loop.products, len(loop.body)))
    else:
        main = max(innermost, key=lambda loop: len(loop.body))
    around = min((loop for loop in every if main.body < loop.body), key=lambda loop: len(loop.body), default=None)
    return len(main.body), around.own if around else 0


def _blocks(code: list[Instruction]) -> list[list[Instruction]]:
    """Basic blocks in the order of the code."""
    starts = {_target(line) for line in code} | {
        after.address for line, after in itertools.pairwise(code) if _ends(line)
    }
    blocks: list[list[Instruction]] = []
    for line in code:
        if not blocks or line.address in starts:
            blocks.append([])
        blocks[-1].append(line)
    return blocks


def _target(line: Instruction) -> int | None:
    """Where a branch leads."""
    found = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)$", line.text)
    return int(found[1], 16) if found else None


def _ends(line: Instruction) -> bool:
    return bool(re.search(r"\b(BRA|BRX|EXIT|RET|JMP)\b", line.text))


def _successors(last: Instruction, index: int, blocks: list[list[Instruction]]) -> list[int]:
    """Blocks that may run after one that ends in ``last``."""
    target = _target(last)
    found = [i for i, block in enumerate(blocks) if block[0].address == target]
    always = not last.text.startswith("@") and not re.search(r"\bBRA\S* .*,", last.text)
    if not (always and _ends(last)) and index + 1 < len(blocks):
        found.append(index + 1)
    return found


def _dominators(before: list[list[int]]) -> list[set[int]]:
    """For each block, those that every path to it from the first passes; its own included."""
    everything = set(range(len(before)))
    found = [{0}] + [everything] * (len(before) - 1)
    changed = True
    while changed:
        changed = False
        for i in range(1, len(before)):
            now = {i} | (set.intersection(*(found[j] for j in before[i])) if before[i] else set())
            if now != found[i]:
                found[i], changed = now, True
    return found
