"""What a quantizer does, as tensors by name; run as a script it records what a library's own classes do.

    python tests/compat/record.py taming <checkout of taming-transformers>
    python tests/compat/record.py llamagen <checkout of LlamaGen>
    python tests/compat/record.py titok <checkout of 1d-tokenizer>

writes ``tests/fixtures/compat/<library>.safetensors``: the inputs, and for each case its first state and its trace.
"""

import copy
import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parents[1] / "fixtures" / "compat"
FILES = {
    "taming": "taming/modules/vqvae/quantize.py",
    "llamagen": "tokenizer/tokenizer_image/vq_model.py",
    "titok": "modeling/quantizer/quantizer.py",
}
SIZE, DIM, STEPS = 32, 8, 20
USED = [3, 5, 6, 7, 11, 12, 13, 20, 22, 24, 27, 30, 31]


def _map(quantizer, codes):
    """By the shape of the map, channels last."""
    return quantizer.get_codebook_entry(codes.flatten(), (2, 4, 2, DIM))


def _llamagen(quantizer, codes):
    first = quantizer.get_codebook_entry(codes, (2, DIM, 4, 2))
    last = quantizer.get_codebook_entry(codes, (2, 4, 2, DIM), channel_first=False)
    return torch.cat([quantizer.get_codebook_entry(codes).flatten(), first.flatten(), last.flatten()])


def _titok(quantizer, codes):
    weights = torch.linspace(-1, 1, 3 * SIZE).view(3, SIZE)
    return torch.cat([quantizer.get_codebook_entry(codes.flatten()), quantizer.get_codebook_entry(weights)])


def _none(quantizer, codes):
    return torch.zeros(0)


#: Case: class, arguments, how vectors of codes are asked for.
CASES = {
    "taming": {
        "first": ("VectorQuantizer", dict(n_e=SIZE, e_dim=DIM, beta=0.25), _map),
        "second": ("VectorQuantizer2", dict(n_e=SIZE, e_dim=DIM, beta=0.25), _map),
        "not_legacy": (
            "VectorQuantizer2",
            dict(n_e=SIZE, e_dim=DIM, beta=0.25, legacy=False, sane_index_shape=True),
            _map,
        ),
        "remap_random": ("VectorQuantizer2", dict(n_e=SIZE, e_dim=DIM, beta=0.5, remap=USED), _map),
        "remap_extra": (
            "VectorQuantizer2",
            dict(n_e=SIZE, e_dim=DIM, beta=1.0, remap=USED, unknown_index="extra"),
            _map,
        ),
        "remap_number": (
            "VectorQuantizer2",
            dict(n_e=SIZE, e_dim=DIM, beta=0.25, remap=USED, unknown_index=2, sane_index_shape=True),
            _map,
        ),
        "ema": ("EMAVectorQuantizer", dict(n_embed=SIZE, embedding_dim=DIM, beta=0.25), _none),
        "ema_fast": ("EMAVectorQuantizer", dict(n_embed=SIZE, embedding_dim=DIM, beta=1.0, decay=0.8, eps=1e-3), _none),
    },
    "llamagen": {
        "plain": ("VectorQuantizer", (SIZE, DIM, 0.25, 0.0, False, False), _llamagen),
        "unit": ("VectorQuantizer", (SIZE, DIM, 0.25, 0.0, True, True), _llamagen),
        "entropy": ("VectorQuantizer", (SIZE, DIM, 0.5, 0.1, False, True), _llamagen),
        "unit_entropy": ("VectorQuantizer", (SIZE, DIM, 0.25, 0.1, True, False), _llamagen),
    },
    "titok": {
        "plain": ("VectorQuantizer", dict(codebook_size=SIZE, token_size=DIM), _titok),
        "unit": ("VectorQuantizer", dict(codebook_size=SIZE, token_size=DIM, use_l2_norm=True), _titok),
        "clustering": ("VectorQuantizer", dict(codebook_size=SIZE, token_size=DIM, clustering_vq=True), _titok),
        "unit_clustering": (
            "VectorQuantizer",
            dict(codebook_size=SIZE, token_size=DIM, commitment_cost=0.5, use_l2_norm=True, clustering_vq=True),
            _titok,
        ),
    },
}


def build(library, case, classes):
    """The quantizer of a case, from a module that has its class."""
    name, arguments, _ = CASES[library][case]
    if not isinstance(arguments, dict):
        return getattr(classes, name)(*arguments)
    if arguments.get("remap") is None:
        return getattr(classes, name)(**arguments)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/used.npy", np.array(arguments["remap"]))
        return getattr(classes, name)(**{**arguments, "remap": f"{folder}/used.npy"})


def leaves(output, prefix=""):
    """Tensors and numbers of nested tuples and dicts, by path; None is left out."""
    if isinstance(output, torch.Tensor):
        return {prefix: output}
    if isinstance(output, (int, float)):
        return {prefix: torch.tensor(float(output))}
    items = output.items() if isinstance(output, dict) else enumerate(output or ())
    return {name: leaf for key, part in items for name, leaf in leaves(part, f"{prefix}.{key}").items()}


def state(quantizer):
    """The state dict, of a long buffer of past codes only the end."""
    return {key: value.detach().flatten()[-330:].clone() for key, value in quantizer.state_dict().items()}


def trace(quantizer, inputs, entry):
    """Outputs and gradients in training and evaluation, vectors of codes, and losses and state of 20 training steps."""
    found = {}
    for mode in ("train", "eval"):
        torch.manual_seed(1)
        one = copy.deepcopy(quantizer).train(mode == "train")
        z = inputs[0].clone().requires_grad_()
        output = one(z)
        outputs = leaves(output)
        found |= {f"{mode}{name}": leaf.detach().clone() for name, leaf in outputs.items()}
        losses = [leaf for leaf in outputs.values() if leaf.dim() == 0 and leaf.requires_grad]
        total = sum(weight * loss for weight, loss in enumerate(losses, 1)) + (outputs[".0"] * inputs[1]).sum()
        wanted = {"z": z} | {name: p for name, p in one.named_parameters() if p.requires_grad}
        grads = torch.autograd.grad(total, wanted.values(), allow_unused=True)
        found |= {f"{mode}/grad/{name}": g for name, g in zip(wanted, grads, strict=True) if g is not None}
        before, after = state(quantizer), state(one)
        found |= {f"{mode}/state/{n}": value for n, value in after.items() if not torch.equal(value, before[n])}
    found["entry"] = entry(quantizer, next(leaf for leaf in outputs.values() if leaf.dtype == torch.int64)).detach()
    return found | _training(quantizer, inputs)


def far(quantizer, inputs):
    """Vectors and codes moved far from the origin, where float32's distances cancel: the vectors, the chosen codes."""
    moved = copy.deepcopy(quantizer).eval()
    moved.embedding.weight.data += 1000
    x = (inputs[:2] + 1000).flatten(0, 1)
    codes = next(leaf for leaf in leaves(moved(x)).values() if leaf.dtype == torch.int64)
    return x.permute(0, 2, 3, 1).flatten(0, 2), codes.flatten(), moved.embedding.weight.detach()


def _training(quantizer, inputs):
    """20 steps of SGD on the codebook and on a gain of each channel, with the quantizer's losses and a distortion."""
    torch.manual_seed(2)
    quantizer.train()
    gain = torch.ones(1, DIM, 1, 1, requires_grad=True)
    optimizer = torch.optim.SGD([gain, *(p for p in quantizer.parameters() if p.requires_grad)], lr=0.2)
    values = []
    for x in inputs:
        outputs = leaves(quantizer(x * gain))
        losses = [leaf for leaf in outputs.values() if leaf.dim() == 0 and leaf.requires_grad]
        loss = sum(losses) + (outputs[".0"] - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.detach())
    found = {"steps/loss": torch.stack(values), "steps/gain": gain.detach()}
    return found | {f"steps/state/{name}": value for name, value in state(quantizer).items()}


def _load(library, checkout):
    """A file of a checkout as a module, mended where it cannot run as it is."""
    spec = importlib.util.spec_from_file_location(f"theirs_{library}", Path(checkout) / FILES[library])
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.codebook_dim, module.num_tokens = DIM, SIZE  # taming's EMAVectorQuantizer reads both as globals
    return module


def _record(library, checkout):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    inputs = torch.randn(STEPS, 2, DIM, 4, 2)
    found = {"inputs": inputs}
    theirs = _load(library, checkout)
    for case, (_, _, entry) in CASES[library].items():
        quantizer = build(library, case, theirs)
        for name, buffer in list(quantizer.named_buffers()):  # LlamaGen's buffer asks for a gradient, and then refuses
            # From 0, TiTok's unused codes would gather in the same places, and rounding would choose between them.
            quantizer.register_buffer(name, torch.full_like(buffer, 1e-4) if name == "embed_prob" else buffer.detach())
        for name, parameter in quantizer.named_parameters():
            if name == "embedding.weight":
                parameter.data.normal_(std=0.7)
        first = {name: value for name, value in quantizer.state_dict().items() if name != "codebook_used"}
        found |= {f"{case}/first/{name}": value.clone() for name, value in first.items()}
        found[f"{case}/far"] = far(quantizer, inputs)[1]
        found |= {f"{case}/{name}": value for name, value in trace(quantizer, inputs, entry).items()}
    FIXTURES.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in found.items()}, FIXTURES / f"{library}.safetensors")


if __name__ == "__main__":
    _record(*sys.argv[1:])
