"""The rooms of the package from the bottom up: each may import what stands before it, and nothing else.

A room is a folder, or a file that is named here by itself. The ``__init__`` of a folder stands right above all of it.
``python tests/layers.py`` writes the list into CONTRIBUTING.md.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Room, and what it is for.
ROOMS = {
    "errors": "what is raised on purpose",
    "kernels": "Triton: tensors in, tensors out",
    "backends": "what this machine can run, and which device and precision to use",
    "files": "files that are whole or absent",
    "compat/moved": "old import paths",
    "codes": "`CodeSequence`",
    "testing": "tolerances and adversarial inputs",
    "distributed": "several processes as one",
    "precompile": "compile what a step launches: `dqcore.warmup`",
    "ops/checks": "argument checks",
    "ops/registry": "how a function becomes an op",
    "ops/sequences": "packed sequences and what they hide",
    "ops/layout": "positions, blocks and grids",
    "ops/extension": "calls into `dqcore._C`",
    "ops/dropout_mask": "",
    "ops/code_sums": "",
    "ops/nearest_code": "",
    "ops/cpu/nearest_code": "",
    "ops/cpu/dynamic_lookup": "",
    "ops/dynamic_lookup": "",
    "ops/patch_entropy": "",
    "ops/cpu/patch_entropy": "",
    "ops/pack_codes": "",
    "ops/unpack_codes": "",
    "ops/pack_features": "",
    "ops/expand_features": "",
    "ops/varlen_attention": "",
    "ops/cpu/varlen_attention": "",
    "ops/decode_attention": "",
    "ops/cpu/decode_attention": "",
    "ops/__init__": "all ops, public",
    "metrics": "distortion, rate, use of the codebook, rank correlation",
    "data": "images, crops, batches, codes on disk",
    "nn": "layers",
    "estimators": "how a gradient passes the lookup, how vectors are compared",
    "codebook": "how a codebook starts, learns and revives",
    "compat/vector_quantize_pytorch": "that library's `VectorQuantize`, on our kernels",
    "quantizer": "`DynamicQuantizer`",
    "models/pretrained": "saving and loading",
    "models/tape": "every token an image may have, in order",
    "models/sampling": "drawing code sequences, token by token",
    "models/priors": "DQ-Transformer and its rivals",
    "models/tokenizers": "DQ-VAE and VQGAN",
    "models/auto": "saved models whose kind is not known beforehand",
    "convert": "the released checkpoints",
    "inference": "load, encode, reconstruct, sample, evaluate",
    "training": "loop, log, checkpoint, state, schedule, average",
    "training/tokenizer": "the first stage",
    "training/prior": "the second stage",
    "report": "the page of a run",
    "__init__": "the public names",
    "cli/demo": "`dqcore demo`",
    "cli": "the command line, a file for each verb",
    "__main__": "`python -m dqcore`",
}


def file_of(path: Path) -> str:
    """``ops/cpu/nearest_code`` for ``dqcore/ops/cpu/nearest_code.py``; ``kernels/scan`` for ``kernels/scan.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "/".join(parts if parts[0] == "kernels" else parts[1:])


FILES = {file_of(path): path for path in (*ROOT.glob("dqcore/**/*.py"), *ROOT.glob("kernels/*.py"))}


def room_of(file: str) -> str:
    """The room of a file: itself, or its folder."""
    folder, _, name = file.rpartition("/")
    return file if file in ROOMS or name == "__init__" else folder


def rank(room: str) -> float:
    """Place from the bottom up; no two rooms share one."""
    order = list(ROOMS)
    if room in ROOMS:
        return order.index(room)
    folder = room.removesuffix("/__init__")
    inside = [place for place, name in enumerate(order) if name == folder or name.startswith(f"{folder}/")]
    depth = folder.count("/")
    return max(inside) + 1 / (2 + depth) if inside else -1.0


def imports(file: str) -> Iterator[tuple[str, int]]:
    """Files of the package that a file imports, wherever in it, and the lines."""
    for node in ast.walk(ast.parse(FILES[file].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "dqcore" and (target := _imported(name)) != file:
                yield target, node.lineno


def _imported(name: str) -> str:
    """The file that ``dqcore.a.b.c`` lies in: the longest part of the name that is one."""
    parts = name.split(".")[1:]
    for end in range(len(parts), -1, -1):
        place = "/".join(parts[:end])
        for file in (place, f"{place}/__init__".removeprefix("/")):
            if file in FILES:
                return file
    raise AssertionError(name)


def floors() -> dict[str, int]:
    """Floor of each folder and top-level file: one above the highest that it imports, the lowest is 1."""

    def house(file: str) -> str:
        return file.partition("/")[0]

    below: dict[str, set[str]] = {house(file): set() for file in FILES}
    for file in FILES:
        below[house(file)] |= {house(target) for target, _ in imports(file)} - {house(file)}

    def floor(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, f"a cycle: {' -> '.join((*above, name))}"
        return 1 + max((floor(other, (*above, name)) for other in below[name]), default=0)

    return {name: floor(name) for name in below}
