import contextlib
import copy
import functools
import importlib
import importlib.util
import itertools
import types

import pytest
import torch
from torch import nn

import dqcore
from dqcore import DynamicQuantizer, precompile
from dqcore.codebook import KMeans, RandomRestart
from dqcore.ops import decode_attention


def problem(device="cpu", **options):
    options.setdefault("restart", RandomRestart(0.9))
    quantizer = DynamicQuantizer(8, 19, 2, **options).to(device)
    maps = [torch.randn(2, 8, 3 << g, 4 << g, device=device, requires_grad=True) for g in range(2)]
    return quantizer, maps, torch.randint(0, 2, (2, 3, 4), device=device)


def state(quantizer, maps):
    """Everything a step may move, copied; and which objects hold the gradients."""
    tensors = [*quantizer.state_dict().values(), *maps, torch.get_rng_state()]
    leaves = [*quantizer.parameters(), *maps]
    tensors += [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [tensor.detach().clone() for tensor in tensors], [id(leaf.grad) for leaf in leaves]


def same(before, after):
    assert before[1] == after[1]
    assert len(before[0]) == len(after[0])
    return all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))


def step(quantizer, maps, grain):
    out = quantizer(maps, grain)
    (out.map.sum() + out.loss).backward()
    return out.loss


def step_with_gradients(quantizer, maps, grain):
    out = quantizer(maps, grain)
    return out.map, out.loss, torch.autograd.grad(out.map.square().sum() + out.loss, maps)


STEPS = {
    "module": lambda q, m, g: (q, m, g),
    "method": lambda q, m, g: (q.forward, m, g),
    "partial": lambda q, m, g: (functools.partial(q, grain=g), m),
    "closure": lambda q, m, g: (lambda: q(m, g).loss,),
    "own backward": lambda q, m, g: (functools.partial(step, q), m, g),
    "own gradients": lambda q, m, g: (functools.partial(step_with_gradients, q), m, g),
    "containers": lambda q, m, g: (lambda given: q(given["maps"], given["rest"][0]), {"maps": m, "rest": (g,)}),
}


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("grads", [False, True])
def test_leaves_no_trace(kind, grads):
    quantizer, maps, grain = problem()
    if grads:
        step(quantizer, maps, grain)
    before = state(quantizer, maps)
    call, *args = STEPS[kind](quantizer, maps, grain)
    call(*args)
    assert not same((before[0], []), (state(quantizer, maps)[0][: len(before[0])], []))  # the step does leave one
    quantizer, maps, grain = problem()
    if grads:
        step(quantizer, maps, grain)
    before, pointer = state(quantizer, maps), quantizer.codebook.weight.data_ptr()
    dqcore.warmup(*STEPS[kind](quantizer, maps, grain))
    assert same(before, state(quantizer, maps))
    assert quantizer.codebook.weight.data_ptr() == pointer


def test_runs_backward_once():
    class Count(torch.autograd.Function):
        runs = 0

        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            Count.runs += 1
            return grad * 2

    layer = nn.Linear(3, 3)
    dqcore.warmup(lambda x: {"deep": [Count.apply(layer(x))]}, torch.randn(2, 3))
    assert Count.runs == 1 and layer.weight.grad is None
    dqcore.warmup(lambda x: Count.apply(layer(x)).sum().backward(), torch.randn(2, 3))
    assert Count.runs == 2 and layer.weight.grad is None
    with torch.no_grad():
        dqcore.warmup(lambda x: Count.apply(layer(x)), torch.randn(2, 3))
    assert Count.runs == 2


def test_a_graph_before_the_arguments_survives():
    quantizer, maps, grain = problem()
    encoder = nn.Conv2d(8, 8, 1)
    features = [encoder(m) for m in maps]
    dqcore.warmup(quantizer, features, grain)
    assert encoder.weight.grad is None and all(m.grad is None for m in maps)
    sum(f.square().sum() for f in features).backward()
    assert encoder.weight.grad is not None


def test_caches_keep_their_content():
    q, k, v = torch.randn(3, 2, 1, 2, 16)
    caches = torch.full((2, 2, 8, 2, 16), float("nan"))
    caches[:, :, :3] = 1
    before, lengths = caches.clone(), torch.tensor([3, 3], dtype=torch.int32)
    dqcore.warmup(decode_attention, q, k, v, caches[0], caches[1], lengths)
    assert torch.equal(caches.view(torch.int32), before.view(torch.int32))
    decode_attention(q, k, v, caches[0], caches[1], lengths)
    assert not torch.equal(caches.view(torch.int32), before.view(torch.int32))


def test_overlapping_arguments():
    base = torch.arange(12.0)
    wide = torch.ones(1).expand(4)
    dqcore.warmup(lambda x, y, z: (x.add_(1), y.mul_(3), z + 1), base[:8], base[4:], wide)
    assert torch.equal(base, torch.arange(12.0)) and torch.equal(wide, torch.ones(4))


def test_what_a_module_keeps_beside_tensors():
    quantizer, maps, grain = problem(initialisation=KMeans(iterations=1))
    before = state(quantizer, maps)
    dqcore.warmup(quantizer, maps, grain)
    assert same(before, state(quantizer, maps))
    twin = copy.deepcopy(quantizer)
    torch.manual_seed(1)
    out = quantizer(maps, grain)  # its first batch is still to come
    torch.manual_seed(1)
    assert torch.equal(out.codes, twin(maps, grain).codes)
    assert bool(quantizer.initialised)

    class Replaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.calls = 0

        def forward(self, x):
            self.count, self.calls, self.extra = self.count + 1, self.calls + 1, x
            return x

    module = Replaces()
    buffer = module.count
    dqcore.warmup(module, torch.ones(2))
    assert module.count is buffer and module.count.item() == 0
    assert module.calls == 0 and not hasattr(module, "extra")


COUNT = torch.zeros(1)


def test_globals_and_recursion():
    def count(n):
        COUNT.add_(1)
        return count(n - 1) if n else COUNT

    dqcore.warmup(count, 2)
    assert COUNT.item() == 0


def test_errors_pass_and_leave_no_trace():
    quantizer, maps, grain = problem()
    step(quantizer, maps, grain)
    before = state(quantizer, maps)

    def fails():
        step(quantizer, maps, grain)
        quantizer.codebook.idle.fill_(7)
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        dqcore.warmup(fails)
    assert same(before, state(quantizer, maps))
    with pytest.raises(ValueError, match="grain"):
        dqcore.warmup(quantizer, maps, grain + 5)
    assert same(before, state(quantizer, maps))


def test_what_a_gpu_still_does_ends_before_all_is_put_back(monkeypatch):
    """Of a step that raised, too: its kernels would else write over it."""
    events = []

    class Reached(precompile._Reached):
        def add(self, value):
            self.tensors = [types.SimpleNamespace(device=torch.device("cuda:0"), requires_grad=False)]

        @contextlib.contextmanager
        def kept(self):
            try:
                yield
            finally:
                events.append("put back")

    stream = types.SimpleNamespace(wait_stream=lambda other: events.append("wait"))
    monkeypatch.setattr(precompile, "_Reached", Reached)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda place: contextlib.nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("synchronize"))
    with pytest.raises(ZeroDivisionError):
        dqcore.warmup(lambda: 1 / 0)
    assert events == ["wait", "wait", "synchronize", "put back"]


def test_errors_of_the_backward_pass_are_not_hidden():
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        dqcore.warmup(Breaks.apply, torch.ones(2, requires_grad=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_training_step_compiles_nothing_and_equals_the_eager_one():
    """EMA and restarts included: state, outputs and gradients of five steps, bit for bit."""
    triton = pytest.importorskip("triton")
    quantizer, maps, grain = problem("cuda")
    eager, inputs = copy.deepcopy(quantizer), [m.detach().clone().requires_grad_() for m in maps]
    batches = [[torch.randn_like(m) for m in maps] for _ in range(5)]

    def run(quantizer, maps):
        out = quantizer(maps, grain)
        grads = torch.autograd.grad(out.map.square().sum() + out.loss, maps)
        return [out.map, out.codes, out.loss, *grads]

    dqcore.warmup(run, quantizer, maps)
    before = state(quantizer, maps)
    compiled = []
    hook = triton.knobs.runtime.jit_post_compile_hook
    triton.knobs.runtime.jit_post_compile_hook = lambda **told: compiled.append(told)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(quantizer, maps)
        assert same(before, state(quantizer, maps))  # a capture runs nothing
        torch.cuda.manual_seed(3)
        replayed = []
        for batch in batches:
            for to, values in zip(maps, batch, strict=True):
                to.data.copy_(values)
            graph.replay()
            replayed.append([tensor.clone() for tensor in (*captured, *quantizer.state_dict().values())])
    finally:
        triton.knobs.runtime.jit_post_compile_hook = hook
    assert compiled == []
    torch.cuda.manual_seed(3)
    for batch, found in zip(batches, replayed, strict=True):
        for to, values in zip(inputs, batch, strict=True):
            to.data.copy_(values)
        expected = [*run(eager, inputs), *eager.state_dict().values()]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    differ = [not torch.equal(a[0], b[0]) for a, b in itertools.pairwise(replayed)]
    assert all(differ)


def test_the_function_hides_no_module():
    """``dqcore.warmup`` is the function; its module has another name."""
    assert importlib.util.find_spec("dqcore.warmup") is None
    assert dqcore.warmup is importlib.import_module("dqcore.precompile").warmup
    for name in dqcore.__all__:
        is_module = importlib.util.find_spec(f"dqcore.{name}") is not None
        assert is_module == isinstance(getattr(dqcore, name), types.ModuleType), name
