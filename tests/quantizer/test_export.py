"""Compiled, exported, pickled, on the meta device, in inference mode, in threads and forked processes."""

import copy
import io
import threading

import processes
import pytest
import torch
from torch import nn

from dqcore import DQVAE, DynamicQuantizer
from dqcore.codebook import EMA, Gradient, KMeans, RandomRestart
from dqcore.estimators import Cosine

X = torch.randn(2, 8, 5, 4, generator=torch.Generator().manual_seed(0))
#: Older releases compile a training step in parts, with the same results.
WHOLE = torch.__version__ >= (2, 11)


def trained(**options):
    torch.manual_seed(0)
    quantizer = DynamicQuantizer(8, 20, **options)
    quantizer(X)
    return quantizer


@pytest.mark.parametrize("options", [{}, {"restart": RandomRestart(0.9)}, {"learning": Gradient()}], ids=str)
def test_kmeans_starts_in_one_graph(options):
    quantizer = DynamicQuantizer(8, 20, initialisation=KMeans(3), **options)
    other = copy.deepcopy(quantizer)
    compiled = torch.compile(quantizer, fullgraph=WHOLE, backend="aot_eager")
    for step in range(3):
        torch.manual_seed(step)
        out = compiled(X + step)
        torch.manual_seed(step)
        expected = other(X + step)
        assert torch.equal(out.codes, expected.codes)
        torch.testing.assert_close(out.loss, expected.loss)
    assert bool(quantizer.initialised)
    torch.testing.assert_close(quantizer.codes, other.codes)


def test_a_graph_masks_and_returns_the_parts_of_the_loss():
    quantizer = trained()
    x = X.clone()
    x[0, 0, 0, 0] = float("nan")
    out = torch.compile(quantizer, fullgraph=WHOLE, backend="aot_eager")(x)
    assert (out.codes < 0).sum() == 1 and out.loss.isfinite() and quantizer.codes.isfinite().all()
    torch.testing.assert_close(out.commitment_loss + out.codebook_loss, out.loss)


def test_torch_export():
    quantizer = trained(codebook_dim=4, metric=Cosine()).eval()
    program = torch.export.export(quantizer, (X,))
    found, expected = program.module()(X), quantizer(X)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("what", ["quantizer", "model"])
def test_an_exported_program_in_a_file(what, portable):
    """The named tuples had no name to be written by, which torch.export.save says of the tuple, not of the model."""
    module, x = (
        (trained().eval(), X)
        if what == "quantizer"
        else (DQVAE.from_preset("dqvae-dual-tiny").eval(), 2 * torch.rand(1, 3, 32, 32) - 1)
    )
    getattr(module, "quantizer", module).portable = portable
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,)), file)
    file.seek(0)
    found, expected = torch.export.load(file).module()(x), module(x)
    assert type(found) is type(expected) and torch.equal(found.codes, expected.codes)


def test_onnx():
    """ONNX has no op of ours: a quantizer knows that by itself."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    quantizer = trained().eval()
    file = io.BytesIO()
    torch.onnx.export(quantizer, (X,), dynamo=True).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    map, codes, _ = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    expected = quantizer(X)
    assert torch.equal(torch.from_numpy(codes), expected.codes)
    torch.testing.assert_close(torch.from_numpy(map), expected.map)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("granularities", [1, 3])
def test_a_batch_without_an_upper_bound(granularities, portable):
    """The check that cells can be numbered in 32 bits bounded it, and torch.export then refused the dimension."""
    quantizer = DynamicQuantizer(8, 32, granularities).eval()
    quantizer.portable = portable
    maps = [torch.randn(5, 8, 4 * 2**g, 6 * 2**g) for g in range(granularities)]
    grain = torch.randint(0, granularities, (5, 4, 6))
    batch = {0: torch.export.Dim("B")}
    program = torch.export.export(
        quantizer,
        ([x[:2] for x in maps], grain[:2]),
        dynamic_shapes={"features": [batch] * granularities, "grain": batch},
    )
    assert torch.equal(program.module()(maps, grain)[1], quantizer(maps, grain).codes)


def test_a_portable_program_is_small_and_takes_other_sizes():
    """36000 nodes once, and four minutes, for a VQGAN's 16384 codes of 256 channels."""
    quantizer = DynamicQuantizer(64, 16384).eval()
    quantizer.portable = True
    sizes = {0: torch.export.Dim("B", min=2), 2: torch.export.Dim("H", min=2), 3: torch.export.Dim("W", min=2)}
    program = torch.export.export(quantizer, (torch.randn(2, 64, 16, 15),), dynamic_shapes={"features": sizes})
    assert len(program.graph.nodes) < 400
    x = torch.randn(3, 64, 4, 6) / 16384
    assert torch.equal(program.module()(x)[1], quantizer(x).codes)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace")
def test_a_traced_quantizer():
    quantizer = trained().eval()
    traced = torch.jit.trace(quantizer, X)
    assert torch.equal(traced(X + 1)[1], quantizer(X + 1).codes) and "dqcore::" not in str(traced.inlined_graph)


def test_plain_ops_agree():
    quantizer = trained()
    other = copy.deepcopy(quantizer)
    other.portable = True
    x = X.clone().requires_grad_()
    out, expected = other(x), quantizer(x)
    assert torch.equal(out.codes, expected.codes)
    for one, two in zip(*(torch.autograd.grad(o.map.square().sum() + o.loss, x) for o in (out, expected)), strict=True):
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(other.codes, quantizer.codes)


def test_a_whole_model_in_a_file():
    model, file = nn.Sequential(trained(restart=RandomRestart())), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    torch.manual_seed(1)
    expected = model(X)
    torch.manual_seed(1)
    found = other(X)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    file = io.BytesIO()
    torch.save(expected, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False).commitment_loss, expected.commitment_loss)


@pytest.mark.parametrize("learning", [EMA(), Gradient()], ids=str)
def test_the_meta_device(learning):
    with torch.device("meta"):
        quantizer = DynamicQuantizer(8, 20, learning=learning)
        waiting = DynamicQuantizer(8, 20, learning=learning, initialisation=KMeans())
    quantizer.to_empty(device="cpu")
    assert 0 < quantizer.codes.abs().max() <= 1 / 20 and (quantizer.codebook.cluster_size == 1).all()
    assert not quantizer.codebook.weight[20].any() and not quantizer.codebook.idle.any()
    assert quantizer(X).loss.isfinite()
    waiting.to_empty(device="cpu")
    assert not bool(waiting.initialised)
    assert waiting(X).codes.unique().numel() > 10
    with torch.device("meta"):
        loaded = DynamicQuantizer(8, 20, learning=learning, initialisation=KMeans())
    loaded.load_state_dict(waiting.state_dict(), assign=True)
    assert torch.equal(loaded.eval()(X).codes, waiting.eval()(X).codes)


def test_old_files_load_into_the_new_layer_and_back():
    """A codebook learned by averages and one learned by gradient have the same first keys."""
    state = trained().state_dict()
    assert {*state} == {"initialised", *(f"codebook.{n}" for n in ("weight", "cluster_size", "idle", "embed_sum"))}
    state["codebook.weight"] = nn.Parameter(state["codebook.weight"], requires_grad=False)  # as it was once
    other = DynamicQuantizer(8, 20)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.codes, state["codebook.weight"][:20]) and not list(other.parameters())


def test_inference_mode():
    quantizer = trained()
    other = copy.deepcopy(quantizer)
    expected = quantizer.eval()(X)
    with torch.inference_mode():
        assert torch.equal(quantizer(X).codes, expected.codes)
        quantizer.train()(X)
    other(X)
    quantizer(X).loss, other(X).loss
    assert torch.equal(quantizer.codes, other.codes)


def test_two_threads():
    quantizer, results = trained(), {}
    expected, other = copy.deepcopy(quantizer).eval()(X), copy.deepcopy(quantizer)

    def evaluate(name, layer):
        results[name] = [layer(X).codes for _ in range(10)]

    layers = {"one": quantizer.eval(), "two": quantizer, "three": other}
    threads = [threading.Thread(target=evaluate, args=item) for item in layers.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(codes, expected.codes) for name in ("one", "two") for codes in results[name])
    assert len(results["three"]) == 10 and other.codes.isfinite().all()


FORKED = """
import torch
from torch.utils.data import DataLoader, Dataset
from dqcore import DQVAE, DynamicQuantizer

x = torch.randn(2, 8, 5, 4)
quantizer = DynamicQuantizer(8, 20)
quantizer(x)
quantizer.eval()

class Codes(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        with torch.no_grad():
            return quantizer(x[index % 2 : index % 2 + 1]).codes[0]

batches = list(DataLoader(Codes(), batch_size=2, num_workers=2, multiprocessing_context="fork"))
assert len(batches) == 2 and all(torch.equal(batch, quantizer(x).codes) for batch in batches)
"""


def test_forked_workers():
    """In a process of its own: after products in other threads, as of a test before, MKL may hang in a forked one."""
    code, _, errors = processes.run(FORKED)
    assert code == 0, errors
