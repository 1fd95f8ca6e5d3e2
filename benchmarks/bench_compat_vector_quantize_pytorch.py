"""Our ``VectorQuantize`` beside vector-quantize-pytorch's: training step, inference, and a tiny input's host time."""

import pytest
import torch
from rows import beside

from dqcore.compat.vector_quantize_pytorch import VectorQuantize
from dqcore.testing import assert_nearest

package = pytest.importorskip("vector_quantize_pytorch")
BIG = (8, 256, 32, 32), 1024  # shape of the map, codes
TINY = (1, 64, 4, 4), 512
OPTIONS = {
    "defaults": {},
    "straight_through": {"rotation_trick": False},
    "cosine": {"use_cosine_sim": True},
}
THREADS = sorted({1, min(2, torch.get_num_threads())})


@pytest.fixture(params=THREADS, ids=[f"{number}threads" for number in THREADS])
def threads(request):
    """How many threads the CPU may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def problem(device, case, options):
    """Theirs and ours with the same weights, a map and the gradient of the result; their first results are compared."""
    shape, size = case
    torch.manual_seed(0)
    theirs = package.VectorQuantize(shape[1], size, accept_image_fmap=True, commitment_weight=0.25, **options)
    ours = VectorQuantize(shape[1], size, accept_image_fmap=True, commitment_weight=0.25, **options)
    ours.load_state_dict(theirs.state_dict())
    theirs, ours = theirs.to(device), ours.to(device)
    x = torch.randn(shape, device=device, requires_grad=True)
    grad = torch.randn(shape, device=device)
    before = ours.codebook.clone()
    quantized, codes, loss = ours(x)
    expected, their_codes, their_loss = theirs(x)
    rows = ours._vectors(x.detach()[:1].flatten(2).mT)[0, 0]
    assert_nearest(codes[0].flatten(), rows, before)
    same = codes == their_codes
    assert float(same.float().mean()) > 0.99
    torch.testing.assert_close(quantized.movedim(1, -1)[same], expected.movedim(1, -1)[same], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, their_loss, rtol=1e-4, atol=1e-6)
    return theirs, ours, x, grad


def note(benchmark, theirs, ours, rounds, least=None, **about):
    """Time both in turn, write the ratio down with what it must be at least."""
    target = {"speedup": {"vector_quantize_pytorch": least}} if least else None
    beside(benchmark, ours, {"vector_quantize_pytorch": theirs}, rounds, target, **about)


def step(layer, x, grad):
    """One training step."""

    def run():
        quantized, _, loss = layer(x)
        return torch.autograd.grad([quantized, loss], [x], [grad, None])

    return run


def inference(layer, x):
    """One call in evaluation."""
    layer.eval()

    @torch.no_grad()
    def run():
        return layer(x)

    return run


@pytest.mark.parametrize("name", OPTIONS)
def bench_training_step(benchmark, device, threads, name):
    """Forward, backward and the codebook's step at (8, 256, 32, 32), 1024 codes: at least 4x with the defaults."""
    theirs, ours, x, grad = problem(device, BIG, OPTIONS[name])
    least = 4 if name == "defaults" else None
    note(benchmark, step(theirs, x, grad), step(ours, x, grad), 7, least, options=name, threads=threads)


@pytest.mark.parametrize("name", OPTIONS)
def bench_inference(benchmark, device, threads, name):
    """The same map in evaluation."""
    theirs, ours, x, _ = problem(device, BIG, OPTIONS[name])
    note(benchmark, inference(theirs, x), inference(ours, x), 7, options=name, threads=threads)


@pytest.mark.parametrize("name", OPTIONS)
def bench_tiny_training_step(benchmark, device, name):
    """16 vectors of 64 channels, 512 codes: the host's time, at most 1.5 times theirs."""
    theirs, ours, x, grad = problem(device, TINY, OPTIONS[name])
    note(benchmark, step(theirs, x, grad), step(ours, x, grad), 200, 1 / 1.5, options=name)
