"""That a training step can become one CUDA graph, found out without a GPU: fake CUDA tensors have no values."""

import contextlib
import copy
import importlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dqcore
from dqcore import DQVAE, DQTransformer, DynamicQuantizer, backends
from dqcore.codebook import Gradient, RandomRestart
from dqcore.compat.lookup import one_hot
from dqcore.estimators import Cosine, Rotation
from dqcore.models.priors.global_local import GlobalLocal
from dqcore.nn import GainRouter
from dqcore.ops.reference.patch_entropy import GREY, NO_MASS
from dqcore.testing import assert_close
from dqcore.training.prior.step import measure
from dqcore.training.tokenizer.pixels import PIXEL_LOSSES

extension, pack_features, expand_features = (
    importlib.import_module(f"dqcore.ops.{name}") for name in ("extension", "pack_features", "expand_features")
)

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "equal", "bincount", "_unique2",
         "unique_dim", "unique_consecutive", "repeat_interleave.Tensor", "lift_fresh", "lift_fresh_copy"}  # fmt: skip

#: Older releases compile a training step in parts, with the same results.
WHOLE = torch.__version__ >= (2, 11)


class Watch(TorchDispatchMode):
    """Collects the ops that make the host wait, or copy between it and the device."""

    def __init__(self):
        super().__init__()
        self.ops, self.found = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.")
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        indices = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, torch.Tensor)]
        masks = name.startswith("index") and any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        waits = name in WAITS or name.split(".")[0] in WAITS
        self.ops += 1
        if waits or masks or len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(name)
        return out


@pytest.fixture
def fake_gpu(monkeypatch):
    """Tensors made within lie on a GPU that does not exist; asking for a value raises."""
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda tensor: 0)  # a fake tensor has none, and warns
    with FakeTensorMode(), torch.device("cuda"):
        try:
            torch.empty(1).uniform_()
        except RuntimeError:
            pytest.skip("fake tensors on a GPU need its driver in this PyTorch, as in 2.8")
        yield


OPTIONS = {
    "ema": {"restart": RandomRestart()},
    "gradient": {"learning": Gradient(), "restart": RandomRestart()},
    "cosine": {"metric": Cosine(), "estimator": Rotation(), "restart": RandomRestart()},
    "projected": {"codebook_dim": 4, "restart": RandomRestart()},
}


def problem(masked=False, **options):
    quantizer = DynamicQuantizer(8, 32, 2, **options)
    maps = [torch.randn(2, 8, 4 << g, 4 << g, requires_grad=True) for g in range(2)]
    mask = torch.ones(2, 4, 4, dtype=torch.bool) if masked else None
    return quantizer, maps, torch.zeros(2, 4, 4, dtype=torch.int64), mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_forward_never_waits(fake_gpu, name, masked):
    quantizer, maps, grain, mask = problem(masked, **OPTIONS[name])
    with Watch() as watch:
        quantizer(maps, grain, mask)
        quantizer(maps[1], grain, mask)
    assert watch.ops > 50 and watch.found == []


@pytest.mark.parametrize("name", OPTIONS)
def test_backward_never_waits(name):
    """On the CPU, since autograd asks for a real GPU; what it runs beside ops is the same there."""
    quantizer, maps, grain, _ = problem(**OPTIONS[name])
    out = quantizer(maps, grain)
    value = out.map.square().sum() + out.loss
    with Watch() as watch:
        value.backward()
    assert watch.ops > 5 and watch.found == []


@pytest.mark.parametrize("ratio", [(0.5,), (0.3, 0.3)])
def test_a_gain_router_never_waits_in_evaluation(fake_gpu, ratio):
    """Fake thresholds have no values: whether there are any yet must not be asked."""
    router = GainRouter(8, ratio).eval()
    maps = [torch.randn(2, 8, 4 << g, 4 << g) for g in range(len(ratio) + 1)]
    images = torch.randn(2, 3, 64, 64)
    with Watch() as watch:
        routing = router(images, maps)
    assert routing.grain.shape == (2, 4, 4)
    assert watch.ops > 50 and watch.found == []


@pytest.mark.parametrize("ratio", [(0.5,), (0.3, 0.3), (0.0, 1.0)])
def test_a_gain_router_never_waits_in_training(fake_gpu, ratio):
    router = GainRouter(8, ratio)
    maps = [torch.randn(2, 8, 4 << g, 4 << g) for g in range(len(ratio) + 1)]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), Watch() as watch:
        routing = router(images, maps)
        router.loss(routing, images, images + 1, lambda some, grain: images[some])
    assert watch.ops > 50 and watch.found == []


@pytest.mark.parametrize("router", ["feature", "entropy", "random", "gain"])
@pytest.mark.parametrize("budget", ["paper", "released"])
def test_a_tokenizers_pass_never_waits(fake_gpu, router, budget):
    """Networks, router, quantizer, and all losses of the options."""
    options = {"initialisation": "uniform", "position": "fourier", "router": router, "budget": budget}
    model = DQVAE.from_preset("dqvae-triple-tiny", **options).train()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad(), Watch() as watch:
        out = model(images)
        sum(loss(images, out.reconstruction) for loss in PIXEL_LOSSES.values()).add(out.budget_loss)
    assert watch.ops > 100 and watch.found == []


@pytest.mark.parametrize("kind", [DQTransformer, GlobalLocal])
def test_a_priors_pass_never_waits(kind):
    """The numbers of a step, too, but for reading them at its end. Tensors without values stand for a GPU's."""
    model = kind.from_preset(next(name for name in kind.PRESETS if name.endswith("tiny")), num_classes=3).train()
    rows, columns = model.config.region_grid
    with torch.device("meta"):
        zeros, labels = torch.zeros(2 * rows * columns, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        ends = torch.zeros(3, dtype=torch.int32)
    sequence = dqcore.CodeSequence(zeros, zeros, zeros, ends, (rows, columns), 2)
    model = model.to("meta")
    with torch.no_grad(), Watch() as watch:
        out = model(sequence, labels)
        measure(out, 2, 2)
        model.losses_within(out, model.token_counts(sequence))
    watch.found = [name for name in watch.found if name != "repeat_interleave.Tensor"]  # of a size that is known
    assert watch.ops > 100 and watch.found == []


def test_perplexity_of_other_libraries_quantizers_never_waits(fake_gpu):
    with Watch() as watch:
        one_hot(torch.zeros(5, dtype=torch.int64), 7, torch.float32)
    assert watch.ops > 5 and watch.found == []


def launches():
    from dqcore.kernels import (
        add_layer_norm,
        add_rows,
        bias_gelu,
        code_sums,
        cross_entropy,
        draw,
        dynamic_lookup,
        dynamic_lookup_backward,
        linear_gelu,
        nearest_code,
        patch_entropy,
        take_content,
        take_entry,
    )

    maps = [torch.randn(2, 8, 4 << g, 4 << g) for g in range(2)]
    grain, codebook, x = torch.zeros(2, 4, 4, dtype=torch.int64), torch.randn(32, 8), torch.randn(64, 8)
    yield lambda: nearest_code.nearest_code_fwd(x, codebook, "exact")
    yield lambda: nearest_code.nearest_code_fwd(x.half(), codebook.half(), "exact")
    yield lambda: code_sums.code_sums_fwd(x, torch.zeros(64, dtype=torch.int64), 32)
    yield lambda: dynamic_lookup.dynamic_lookup_fwd(maps, grain, codebook, True)
    codes = torch.zeros(2, 8, 8, dtype=torch.int64)
    yield lambda: dynamic_lookup_backward.dynamic_lookup_bwd(maps, grain, codes, maps[-1], maps[-1], maps[-1][:, 0])
    yield lambda: patch_entropy.patch_entropy_fwd(maps[1][:, :3], 4, -1.0, 1.0, 32, 0.01, GREY, NO_MASS)
    seed, statistics, dropped = torch.zeros(2, dtype=torch.int64), torch.randn(2, 64), (200, torch.float32, torch.half)
    yield lambda: add_layer_norm.add_layer_norm_fwd(x, x.half(), x[0], x[0], seed, 200, 1e-5, torch.half)
    yield lambda: add_layer_norm.add_layer_norm_bwd(x, x, x, statistics, x[0], seed, *dropped)
    yield lambda: bias_gelu.bias_gelu_fwd(x, x[0])
    yield lambda: bias_gelu.bias_gelu_bwd(x, x, x[0])
    yield lambda: linear_gelu.linear_gelu_fwd(x.half(), codebook.half(), codebook[:, 0].half())
    yield lambda: cross_entropy.cross_entropy_fwd(x, torch.zeros(64, dtype=torch.int64))
    yield lambda: cross_entropy.cross_entropy_bwd(x[:, 0], x, torch.zeros(64, dtype=torch.int64), x[:, 0])
    here, tokens, status = (torch.zeros(shape, dtype=torch.int64) for shape in ((2, 3, 1, 7), (2, 3, 9, 7), (3, 9)))
    rules, lengths = torch.zeros(9, 5, 2, dtype=torch.int64), torch.zeros(6, dtype=torch.int32)
    how, logits = (3.0, 0.7, 3, 0.9), torch.randn(6, 12)
    yield lambda: draw.draw_fwd(logits, tokens[0, 0, :6, 6], *how[1:])
    yield lambda: take_entry.take_entry_fwd(here, status, tokens, status[0], rules, logits, *how)
    yield lambda: take_content.take_content_fwd(here, status, lengths, lengths > 0, logits[:, :9], *how)
    yield lambda: add_rows.add_rows_fwd(x[:6], [codebook], [lengths])


def test_launchers_never_wait(fake_gpu, monkeypatch):
    """What they run between their kernels, which are left out here."""
    triton = pytest.importorskip("triton")
    from triton.runtime.interpreter import InterpretedFunction

    launched = []
    for kind in (triton.runtime.jit.JITFunction, InterpretedFunction):
        monkeypatch.setattr(kind, "__getitem__", lambda kernel, grid: lambda *args, **options: launched.append(kernel))
    for launch in launches():
        before = len(launched)
        with Watch() as watch:
            launch()
        assert watch.found == [] and len(launched) > before


@pytest.mark.skipif(backends.extension() is None, reason="needs the extension")
@pytest.mark.parametrize("last", [False, True])
def test_features_are_packed_and_expanded_without_waiting(fake_gpu, monkeypatch, last):
    """Forward and backward, as each is the gradient of the other; the number of codes is known."""
    launched = []
    for module in (extension, pack_features, expand_features):
        monkeypatch.setattr(module, "call", lambda stem, device, *args: launched.append((stem, device.type)))
    grain, memory_format = torch.zeros(2, 4, 4, dtype=torch.int64), torch.channels_last if last else None
    with Watch() as watch:
        features = torch.randn(2, 8, 8, 8)
        features = features.contiguous(memory_format=memory_format) if last else features
        packed = pack_features._extension(features, grain, "row-first", 2, True, 56)
        spread = expand_features._extension(packed, grain, "row-first", 2, True, last)
        pack_features._extension(spread, grain, "row-first", 2, False, len(packed))
    assert packed.shape == (56, 8) and spread.is_contiguous(memory_format=memory_format or torch.contiguous_format)
    assert watch.found == []
    assert launched == [("layout", "cuda"), ("pack_features", "cuda"), ("layout", "cuda"), ("expand_features", "cuda"),
                        ("layout", "cuda"), ("pack_features", "cuda")]  # fmt: skip


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill(x > 0, 1).nonzero(),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3, device="cpu"),
        lambda x: torch.tensor([1.0, 2.0], device=x.device) * x[:2],
        lambda x: torch.repeat_interleave(x, torch.ones(3, dtype=torch.int64, device=x.device)),
    ],
)
def test_waits_are_seen(fake_gpu, wait):
    x, refused = torch.randn(3), False
    with Watch() as watch:
        try:
            wait(x)
        except (RuntimeError, TypeError):  # some of these fake tensors refuse themselves
            refused = True
    assert watch.found or refused


@pytest.mark.parametrize("name", OPTIONS)
def test_a_training_step_is_one_graph(name):
    """Forward, loss, EMA and restarts that do happen: the compiled step moves the codebook as the eager one does."""
    quantizer, maps, _, _ = problem(**{**OPTIONS[name], "restart": RandomRestart(0.99)})
    grain = torch.randint(0, 2, (2, 4, 4))
    other = copy.deepcopy(quantizer)

    def run(quantizer, maps, grain):
        out = quantizer(maps, grain)
        return out.codes, out.map.square().mean() + out.loss

    compiled = torch.compile(run, fullgraph=WHOLE, backend="aot_eager")
    for seed in range(3):
        results = []
        for call, layer in ((compiled, quantizer), (run, other)):
            torch.manual_seed(seed)
            codes, loss = call(layer, maps, grain)
            results.append((codes, loss, torch.autograd.grad(loss, maps)))
        (codes, loss, grads), (expected_codes, expected_loss, expected_grads) = results
        assert torch.equal(codes, expected_codes)
        assert_close(loss, expected_loss)
        for grad, expected in zip(grads, expected_grads, strict=True):
            assert_close(grad, expected)
    assert (quantizer.codebook.cluster_size == 1).any()  # restarted
    for buffer, expected in zip(quantizer.state_dict().values(), other.state_dict().values(), strict=True):
        assert_close(buffer.double(), expected.double(), torch.float32)
