"""A training step in one call is the three ops, bit for bit; where anybody has to see these, it is not taken."""

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")
import dqcore
from dqcore import DynamicQuantizer, backends
from dqcore.codebook import EMA, Gradient, RandomRestart, fused
from dqcore.errors import InputError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not backends.interpreting(), reason="without a GPU and Triton's interpreter no kernel runs"
)


@pytest.fixture(autouse=True)
def kernels():
    with dqcore.backend("auto" if DEVICE == "cuda" else "interpreter"):
        yield


@pytest.fixture
def steps(monkeypatch):
    """What the layer's attempts gave, in turn: whether the one call was made."""
    taken, step = [], fused.step

    def watched(*args):
        found = step(*args)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(fused, "step", watched)
    return taken


def layer(granularities=2, **options):
    options = {"nonfinite": "mask", "restart": RandomRestart(0.9)} | options
    return DynamicQuantizer(8, 12, granularities, **options).to(DEVICE)


def problem(granularities=2, dtype=torch.float32, last=False):
    memory = torch.channels_last if last else torch.contiguous_format
    maps = [torch.randn(1, 8, 1 << g, 2 << g, device=DEVICE, dtype=dtype) for g in range(granularities)]
    maps = [values.contiguous(memory_format=memory).requires_grad_() for values in maps]
    grain = torch.randint(0, granularities, (1, 1, 2), device=DEVICE)
    return maps, grain if granularities > 1 else None


def in_three(monkeypatch, call):
    """The same by the three ops."""
    with monkeypatch.context() as patch:
        patch.setattr(fused, "step", lambda *_: None)
        return call()


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)


def trained(quantizer, maps, grain, weights):
    """All results of two steps, the gradients of both, and the state, with how often each part was written to.

    The weights are those of the map's squares, the loss and its part.
    """
    out, before = [], [values._version for values in quantizer.codebook.buffers()]
    for _ in range(2):
        found = quantizer(maps, grain)
        parts = (found.map.float().square().sum(), found.loss, found.commitment_loss)
        total = sum(weight * part for weight, part in zip(weights, parts, strict=True) if weight)
        grads = torch.autograd.grad(total, maps, allow_unused=True)
        out += [*found, found.commitment_loss, found.codebook_loss, *(grad for grad in grads if grad is not None)]
        assert found.loss.requires_grad and not found.codebook_loss.requires_grad and not found.codes.requires_grad
    after = [values._version for values in quantizer.codebook.buffers()]
    return [*out, *quantizer.codebook.buffers()], [one - other for one, other in zip(after, before, strict=True)]


@pytest.mark.parametrize(
    ("granularities", "dtype", "last", "options", "weights"),
    [
        (1, torch.float32, False, {}, (1, 1, 0)),
        (2, torch.float32, True, {"restart": None}, (0, 1, 0.5)),
        (2, torch.bfloat16, False, {"learning": EMA(decay=0.99)}, (1, 0, 0)),
        (3, torch.float16, True, {"commitment": 2.0}, (0, 0, 1)),
    ],
)
def test_one_call_equals_three(monkeypatch, steps, granularities, dtype, last, options, weights):
    one, (maps, grain) = layer(granularities, **options), problem(granularities, dtype, last)
    other = copy.deepcopy(one)
    expected, versions = in_three(monkeypatch, lambda: trained(other, maps, grain, weights))
    found, written = trained(one, maps, grain, weights)
    same(found, expected)
    assert written == versions and steps == [True, True]


def test_second_derivatives(monkeypatch, steps):
    one, (maps, grain) = layer(), problem()
    other = copy.deepcopy(one)

    def twice(quantizer):
        out = quantizer(maps, grain)
        first = torch.autograd.grad((out.map**3).sum() + out.loss * 2, maps, create_graph=True)
        return torch.autograd.grad(sum((grad**2).sum() for grad in first), maps)

    same(twice(one), in_three(monkeypatch, lambda: twice(other)))
    assert steps == [True]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_computes_it_again_by_the_ops(monkeypatch, steps, reentrant):
    """What the first pass saves has to come again in the same order."""
    one, (maps, grain) = layer(), problem()
    other = copy.deepcopy(one)

    def step(quantizer):
        out = checkpoint(lambda *maps: quantizer(list(maps), grain)[::2], *maps, use_reentrant=reentrant)
        (out[0].square().sum() + out[1]).backward()  # a reentrant one knows no other way
        grads = [values.grad.clone() for values in maps]
        for values in maps:
            values.grad = None
        return [*grads, *quantizer.codebook.buffers()]

    same(step(one), in_three(monkeypatch, lambda: step(other)))
    assert steps == [not reentrant]  # which runs without a graph at first


class Watching(TorchDispatchMode):
    """Notes every op by its name."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_whoever_watches_ops_sees_three(steps):
    quantizer, (maps, grain) = layer(), problem()
    with Watching() as watching:
        quantizer(maps, grain)
    ops = {"dqcore::dynamic_lookup", "dqcore::lookup_loss", "dqcore::codebook_update"}
    assert ops <= watching.names and steps == [False]
    with torch.profiler.profile() as profile:
        quantizer(maps, grain)
    assert ops <= {event.key for event in profile.key_averages()} and steps == [False, False]


class Marked(torch.Tensor):
    """A tensor of a kind of its own."""


def test_what_needs_more_than_the_three_ops_does_not_take_it(steps):
    (maps, grain), mask = problem(), torch.ones(1, 1, 2, dtype=torch.bool, device=DEVICE)
    layer()(maps, grain, mask)
    layer()(maps, grain, learn=False)
    layer().freeze()(maps, grain)
    layer().eval()(maps, grain)
    layer(learning=Gradient())(maps, grain)
    layer(learning=EMA(every=2))(maps, grain)
    layer(codebook_dim=4)(maps, grain)
    layer().double()([values.double() for values in maps], grain)
    layer()([values.as_subclass(Marked) for values in maps], grain)
    layer()(maps, grain.as_subclass(Marked))
    with torch.no_grad():
        layer()(maps, grain)
    with (quantizer := layer()).accumulate():
        quantizer(maps, grain)
    assert not any(steps)
    layer()(maps, grain)
    assert steps[-1]


def test_a_state_that_does_not_fit_is_an_error():
    for name, wrong in (("cluster_size", torch.ones(11)), ("embed_sum", torch.ones(12, 7)), ("idle", torch.ones(12))):
        quantizer, (maps, grain) = layer(), problem()
        setattr(quantizer.codebook, name, wrong.to(DEVICE))
        with pytest.raises((InputError, TypeError), match=name):
            quantizer(maps, grain)
    quantizer, (maps, grain) = layer(), problem()
    quantizer.codebook.decay = 2
    with pytest.raises(InputError, match="decay: expected a number in"):
        quantizer(maps, grain)


def test_what_is_refused_moves_no_code():
    """Eight bits a number, and tensors that PyTorch keeps for no gradient."""
    (maps, grain), quantizer = problem(), layer()
    before = [values.clone() for values in quantizer.codebook.buffers()]
    with pytest.raises(TypeError, match="expected float16, bfloat16, float32"):
        quantizer([values.detach().to(torch.float8_e5m2) for values in maps], grain)
    with torch.inference_mode():
        apart = grain.clone(), maps[0].clone()
    for given in ((maps, apart[0]), ([apart[1], maps[1]], grain)):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
            quantizer(*given)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        quantizer([forward_ad.make_dual(values, torch.ones_like(values)) for values in maps], grain)
    assert all(map(torch.equal, quantizer.codebook.buffers(), before))


def _refuse(_):
    raise OverflowError("no memory for it")


def test_a_hook_that_cannot_save_leaves_the_codes(steps):
    (maps, grain), quantizer = problem(), layer()
    before = [values.clone() for values in quantizer.codebook.buffers()]
    with torch.autograd.graph.saved_tensors_hooks(_refuse, lambda held: held), pytest.raises(OverflowError):
        quantizer(maps, grain)
    assert all(map(torch.equal, quantizer.codebook.buffers(), before)) and steps == [False]
