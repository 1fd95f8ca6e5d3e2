"""The rooms of the package from the bottom up: each may import what stands before it, and nothing else.

A room is a folder, or a file that is named here by itself. The ``__init__`` of a folder stands right above all of it.
``python tests/layers.py`` writes the list into CONTRIBUTING.md.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Room, and what it is for.
ROOMS = {
    "errors": "what is raised on purpose",
    "fields": "values of a dataclass's fields against their annotations",
    "kernels": "Triton: tensors in, tensors out",
    "backends": "what this machine can run, and which device and precision to use",
    "files/__init__": "files that are whole or absent",
    "files/sealed": "JSON objects with a checksum",
    "files/tensors": "tensors on disk, with a checksum",
    "files/checkout": "the commit that is running",
    "files/signals": "a signal that comes twice",
    "files/pictures": "PNG files that say that dqcore made them",
    "printing": "lines in which no name of a file ends the line or moves the cursor",
    "progress": "progress bars, and lines in the log where there is no terminal",
    "compat/moved": "old import paths",
    "drawing": "how objects show themselves: a line of text, and a picture in a notebook",
    "codes": "`CodeSequence`",
    "testing": "tolerances and adversarial inputs",
    "distributed/__init__": "several processes as one",
    "distributed/sharing": "work that all processes share, each item once",
    "distributed/failing": "which process says why a run ends",
    "precompile": "compile what a step launches: `dqcore.warmup`",
    "ops/checks": "argument checks",
    "ops/autocast": "whether it is on, and what runs without it",
    "ops/registry": "how a function becomes an op",
    "ops/sequences": "packed sequences, and which keys their queries see",
    "ops/layout": "where each code lies on the grid and in the sequence",
    "ops/extension": "calls into `dqcore._C`",
    "ops/reference/code_sums": "specification: counts and vector sums of each code",
    "ops/reference/nearest_code": "specification: distances in float64, and the nearest code",
    "ops/reference/dynamic_lookup": "specification: look up every cell of the finest grid",
    "ops/reference/draw_vectors": "specification: vectors drawn from a batch, each with the same chance",
    "ops/reference/codebook_update": "specification: moving averages, and unused codes revived",
    "ops/reference/lookup_loss": "specification: the mean of the errors of cells with a code",
    "ops/reference/cross_entropy": "specification: log of the sum, less the target's logit",
    "ops/reference/patch_entropy": "specification: one bin at a time",
    "ops/reference/pack_codes": "specification: read the code map where each code lies",
    "ops/reference/unpack_codes": "specification: fill the blocks that positions name",
    "ops/reference/pack_features": "specification: add up the cells of each code",
    "ops/reference/expand_features": "specification: read the vector of each cell's code",
    "ops/reference/dropout_mask": "specification: the random bits of dropout",
    "ops/reference/add_layer_norm": "specification: add what dropout leaves, then normalize",
    "ops/reference/bias_gelu": "specification: a bias and GELU in float32",
    "ops/reference/linear_gelu": "specification: a product, a bias and GELU in float32",
    "ops/reference/varlen_attention": "specification: one sequence at a time",
    "ops/reference/decode_attention": "specification: one slot at a time",
    "ops/reference/add_rows": "specification: look up, and add",
    "ops/reference/draw": "specification: probabilities as whole numbers, and a random share of their sum",
    "ops/reference/take_entry": "specification: which entries may come next, and what taking one changes",
    "ops/reference/take_content": "specification: a code, and the end of a step",
    "ops/cpu/prepared_codes": "the codebook centred and scaled, and an error bound of its products",
    "ops/cpu/split_codes": "bfloat16 parts of the codes, for a CPU that multiplies tiles of them",
    "ops/cpu/product_search": "a blocked product, checked by an error bound",
    "ops/cpu/code_search": "a prepared codebook, kept while its codes stay as they are",
    "ops/cpu/nearest_code": "search for a block of vectors at a time",
    "ops/cpu/dynamic_lookup": "look up only the vectors that the grain map selects",
    "ops/cpu/patch_entropy": "add each pixel to the bins near it",
    "ops/cpu/flash": "PyTorch's flash attention, one sequence at a time",
    "ops/cpu/dropout_mask": "weights that the mask drops, in place",
    "ops/cpu/dropped_attention": "attention with dropout, a block of queries at a time",
    "ops/cpu/varlen_attention": "flash attention of each packed sequence, or with dropout",
    "ops/cpu/decode_attention": "one batched product, or flash attention slot by slot",
    "ops/code_sums": "op: counts and vector sums of each code",
    "ops/nearest_code": "op: the exact nearest code",
    "ops/dynamic_lookup": "op: the nearest codes of each region at its granularity",
    "ops/codebook_update": "op: what an EMA codebook learns from a batch",
    "ops/draw_vectors": "op: vectors drawn from a batch that comes in parts",
    "ops/lookup_loss": "op: the loss of a lookup",
    "ops/lookup_step": "lookup, loss and update of a training step as one call",
    "ops/cross_entropy": "op: what predicting each token costs",
    "ops/patch_entropy": "op: entropy of each patch's grey values",
    "ops/pack_codes": "op: code map and grain map to code sequence",
    "ops/unpack_codes": "op: code sequence to code map and grain map",
    "ops/pack_features": "op: feature map to one vector for each code",
    "ops/expand_features": "op: one vector for each code to feature map",
    "ops/dropout_mask": "op: which attention weights survive dropout",
    "ops/bias_gelu": "op: a bias and exact GELU",
    "ops/linear_gelu": "op: a linear layer with exact GELU",
    "ops/add_layer_norm": "op: a residual sum with dropout, and the normalization after it",
    "ops/varlen_attention": "op: attention within packed sequences",
    "ops/varlen_attention_packed": "op: the same of queries, keys and values in one tensor",
    "ops/decode_attention": "op: attention of new tokens to the cached past of their slot",
    "ops/add_rows": "op: sums of embeddings",
    "ops/draw": "op: an index drawn from logits by a given random number",
    "ops/take_entry": "op: the next position of each slot, drawn and taken",
    "ops/take_content": "op: the code that stands there, and the end of a sampling step",
    "ops/__init__": "all ops, public",
    "metrics": "distortion, rate, use of the codebook, rank correlation, sets of images, confidence intervals",
    "data": "images, crops, batches, codes on disk",
    "nn": "layers",
    "estimators": "how a gradient passes the lookup, how vectors are compared",
    "codebook": "how a codebook starts, learns and revives; a layer with one",
    "compat/plain": "when these quantizers compute with PyTorch's own operations",
    "compat/lookup": "what the quantizers of other libraries share",
    "compat/remap": "codes numbered anew",
    "compat/entropy": "entropy loss, in blocks",
    "compat/taming": "quantizers of taming-transformers",
    "compat/llamagen": "quantizer of LlamaGen",
    "compat/titok": "quantizer of TiTok",
    "compat/diffusers": "quantizer of diffusers",
    "compat/vector_quantize_pytorch": "that library's `VectorQuantize`, on our kernels",
    "compat/rebuild": "ours from an instance of theirs",
    "compat/replace": "`replace_quantizers`",
    "quantizer": "`DynamicQuantizer`, and how its forward pass is computed",
    "models/weights": "the weights that come with the package",
    "models/summary": "what a model says of itself",
    "models/hub": "models on the Hugging Face Hub",
    "models/checks": "whether a saved model can be trusted",
    "models/folder": "the files of a saved model",
    "models/card": "the model card, written from the run",
    "models/pretrained": "saving and loading",
    "models/tape": "every token an image may have, in order",
    "models/tapes": "coarse to fine, and raster",
    "models/sampling": "drawing code sequences, token by token",
    "models/priors": "DQ-Transformer and its rivals",
    "models/tokenizers": "DQ-VAE and VQGAN",
    "models/auto": "saved models whose kind is not known beforehand",
    "stream/tables": "how often each code occurs, and beside what, in whole numbers",
    "stream/checks": "arguments",
    "stream/counts": "counting that",
    "stream/files": "the tables of a model on disk",
    "stream/header": "the first bytes of a `.dqc` file",
    "stream/predictor": "how likely each number comes next, in integers alone",
    "stream/coder": "numbers to bytes: the range coder of constriction",
    "stream/walk": "the way through a photo's maps, for writer and reader",
    "stream/stream": "a photo's codes and grain map as bytes, and back",
    "convert": "the released checkpoints",
    "inference": "load, encode, reconstruct, sample, evaluate",
    "training": "what both stages share: loop, stage, options, log, record, checkpoint, schedule, clock, stop",
    "training/tokenizer": "the first stage",
    "training/prior": "the second stage",
    "report": "the page of a run, and that of the experiments' results",
    "experiments": "the paper's tables and figures measured: a file an experiment, over the training of both stages",
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
        elif isinstance(node, ast.Call):
            names = _named(node)
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "dqcore" and (target := _imported(name)) != file:
                yield target, node.lineno


def _named(call: ast.Call) -> list[str]:
    """The module that a call imports by its name, where that is written out; the extension is no file of a room."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = function in ("import_module", "__import__") and call.args and isinstance(call.args[0], ast.Constant)
    return [str(call.args[0].value)] if named and call.args[0].value != "dqcore._C" else []


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


def as_markdown() -> str:
    """The rooms as a list from the top down: a line for each folder and top-level file, with its floor."""
    height, lines = floors(), []
    for head in dict.fromkeys(name.partition("/")[0] for name in reversed(ROOMS)):
        folder = head == "kernels" or (ROOT / "dqcore" / head).is_dir()
        path = f"{head}/" if head == "kernels" else f"dqcore/{head}{'/' if folder else '.py'}"
        inside = [name for name in reversed(ROOMS) if name.startswith(f"{head}/")]
        parts = [f"`{name.removeprefix(f'{head}/')}` {ROOMS[name]}".strip() for name in inside]
        about = "; ".join(([ROOMS[head]] if head in ROOMS else []) + parts)
        lines.append(f"- floor {height[head]}, `{path}`: {about}")
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- layers: python tests/layers.py writes this list -->\n", "<!-- end of layers -->\n"


def written(text: str) -> str:
    """``text`` with the list of rooms between its two markers."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: BEGIN + as_markdown() + END, text, flags=re.DOTALL
    )


if __name__ == "__main__":
    page = ROOT / "CONTRIBUTING.md"
    page.write_text(written(page.read_text()))
