"""How many kernels a call launches, and how many bytes they move, counted without a GPU: on tensors without data.

``python benchmarks/launches.py`` prints those of a sampling step and of a layer in training.
An op of PyTorch counts as the launches that it makes on a GPU, 0 for a view or an allocation and 1 for most others; an
op of ours runs its launcher, whose Triton kernels count themselves. A ``Counter`` names each launch, so that a test can
say what came on top. Bytes are those of all tensors that a launch is given or returns, each once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from machine import needs_triton
from torch.utils._python_dispatch import TorchDispatchMode

from dqcore import backends

#: Ops that launch nothing though their results are no views.
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "set_", "sym_size",
        "is_pinned", "_local_scalar_dense", "lift_fresh", "scalar_tensor", "is_same_size", "resize_"}  # fmt: skip
#: Ops that launch several kernels, as ``torch.profiler`` shows on an H100: a radix sort of 32 bits is a histogram, its
#: scan, four passes and their clearings.
SEVERAL = {"sort": 12, "argsort": 12, "topk": 8, "cumsum": 2, "nonzero": 4, "index_add": 2, "unique": 20}
#: Launches of matrix products and attention, whose bytes no neighbour could save.
PRODUCTS = {"linear", "mm", "addmm", "_varlen_attention_fwd_kernel", "_varlen_attention_dq_kernel",
            "_varlen_attention_dkv_kernel"}  # fmt: skip


class Counter(TorchDispatchMode):
    """Collects the names of what is launched, in order, in ``names``, and the bytes of each in ``bytes``."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.bytes: list[int] = []

    def note(self, name: str, *tensors: Any) -> None:
        """Add a launch, or the several that a name stands for; the first has the bytes."""
        several = SEVERAL.get(name, 1)
        found = {id(x): x for x in torch.utils._pytree.tree_leaves(tensors) if isinstance(x, torch.Tensor)}
        self.names += [name] * several
        self.bytes += [sum(x.numel() * x.element_size() for x in found.values()), *[0] * (several - 1)]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Count an op of PyTorch; run the launcher of an op of ours."""
        kwargs = kwargs or {}
        if func.namespace == "dqcore":
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        tensors = [value for value in torch.utils._pytree.tree_leaves(out) if isinstance(value, torch.Tensor)]
        if name in FREE or _is_view(func) or not tensors or all(value.numel() == 0 for value in tensors):
            return out
        self.note(name, args, kwargs, out)
        return out


def _is_view(func: Any) -> bool:
    """Whether the results of an op share memory with an argument that it does not write to."""
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


@contextlib.contextmanager
def standing_in() -> Iterator[None]:
    """Within, tensors without data (``device="meta"``) take the way of those on a GPU, and new tensors are such ones.

    Autograd asks for a real GPU where a fake tensor says that it is on one, and for nothing here.
    """
    import torch._dynamo  # keeps the functions that it finds, which should be PyTorch's own

    route, available, autocast = backends.route, backends.available, torch.is_autocast_enabled
    dropout = torch.nn.functional.dropout
    torch.nn.functional.dropout = lambda x, p=0.5, training=True, inplace=False: (
        torch.native_dropout(x, p, training)[0] if training and p else x  # one launch on a GPU, three without data
    )
    torch.is_autocast_enabled = lambda *kind: kind != ("meta",) and autocast(*kind)  # which does not know the word
    backends.route = lambda device: "gpu" if device.type == "meta" else route(device)
    backends.available = lambda kernel, device: device.type == "meta" or available(kernel, device)
    try:
        with torch.device("meta"):
            yield
    finally:
        backends.route, backends.available, torch.is_autocast_enabled = route, available, autocast
        torch.nn.functional.dropout = dropout


@contextlib.contextmanager
def counting() -> Iterator[Counter]:
    """The same, and what would be launched is counted."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    counter, kinds = Counter(), (JITFunction, InterpretedFunction)
    before = [(kind, kind.__getitem__) for kind in kinds]

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda *args, **options: counter.note(kernel.fn.__name__, args)

    for kind in kinds:
        kind.__getitem__ = launcher
    try:
        with standing_in(), counter:
            yield counter
    finally:
        for kind, method in before:
            kind.__getitem__ = method


def sampling_step(position_layers: int, content_layers: int, slots: int = 128, cache: Any = "auto") -> list[str]:
    """What one step of sampling from a prior of the base model's heads launches, in bfloat16."""
    from dqcore import DQTransformer, DQTransformerConfig
    from dqcore.models.sampling.sampler import Sampler
    from dqcore.models.sampling.settings import Sampling

    layers = {"position_layers": position_layers, "content_layers": content_layers}
    config = DQTransformerConfig(codebook_size=1024, region_grid=(8, 8), num_granularities=2, dim=512, **layers)
    prior = DQTransformer(config).eval().to("meta", torch.bfloat16)
    with counting() as counter, torch.inference_mode():
        steps = prior.new_steps(slots, prior.tape.max_tokens, cache)
        sampler = Sampler(prior.tape, steps, slots, Sampling(), lambda samples: None, slots)  # type: ignore[arg-type, return-value]
        counter.names.clear()
        sampler.step()
    return counter.names


def training_layer(rows: int = 16000, dim: int = 1024) -> tuple[int, int]:
    """Launches of a layer of the base model, forward and backward, in bfloat16; and bytes beside its products."""
    from dqcore.nn.transformer import Transformer

    found = []
    for layers in (1, 2):
        stack = Transformer(dim, 16, layers, 0.1).to("meta", torch.bfloat16)
        with counting() as counter:
            x = torch.empty(rows, dim, dtype=torch.bfloat16, requires_grad=True)
            ends = torch.empty(33, dtype=torch.int32)
            counter.names.clear(), counter.bytes.clear()
            stack(x, ends).backward(x.detach())
        moved = zip(counter.names, counter.bytes, strict=True)
        found.append((len(counter.names), sum(size for name, size in moved if name not in PRODUCTS)))
    return found[1][0] - found[0][0], found[1][1] - found[0][1]


def main() -> None:
    """Print the counts."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    needs_triton()
    os.environ.setdefault("TRITON_INTERPRET", "1")  # or the tables of tiles would ask which GPU this is
    one, two = sampling_step(1, 1), sampling_step(1, 2)
    each = len(two) - len(one)
    print(f"a step of sampling: {each} launches a layer, {len(one) - 2 * each} beside the layers")
    print(*one)
    each, size = training_layer()
    print(
        f"training: {each} launches a layer, {size / 16000 / 1024:.1f} bytes a channel of a token beside its products"
    )


if __name__ == "__main__":
    main()
