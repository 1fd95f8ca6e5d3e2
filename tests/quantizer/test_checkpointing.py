"""Activation checkpointing: codes, gradients and buffers are bit for bit those of a plain run."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dqcore import DynamicQuantizer
from dqcore.codebook import EMA, Gradient, KMeans, RandomRestart
from dqcore.errors import InputError
from dqcore.estimators import Cosine, Rotation
from dqcore.quantizer.recompute import FirstPasses

SETTINGS = {
    "ema": {},
    "fast": {"learning": EMA(decay=0.3)},
    "gradient": {"learning": Gradient()},
    "gradient-restart": {"learning": Gradient(), "restart": RandomRestart(0.9), "metric": Cosine()},
    "restart": {"restart": RandomRestart(0.9), "learning": EMA(decay=0.5)},
    "kmeans": {"initialisation": KMeans(3)},
    "cosine": {"metric": Cosine(), "estimator": Rotation(), "learning": EMA(decay=0.3)},
    "projected": {"codebook_dim": 3, "learning": EMA(decay=0.3)},
    "every": {"learning": EMA(decay=0.3, every=2)},
}


class Model(nn.Module):
    """An encoder, a quantizer, and a decoder that draws random numbers after it."""

    def __init__(self, **options):
        super().__init__()
        self.encoder = nn.Conv2d(3, 6, 1)
        self.quantizer = DynamicQuantizer(6, 40, **options)
        self.decoder = nn.Sequential(nn.Dropout(0.3), nn.Conv2d(6, 3, 1))

    def forward(self, x):
        out = self.quantizer(self.encoder(x))
        return self.decoder(out.map), out.codes, out.loss


def run(model, wrap, order=None, steps=3, passes=1):
    torch.manual_seed(3)
    optimizer, seen = torch.optim.SGD(model.parameters(), 0.05), []
    for _ in range(steps):
        outs = []
        for _ in range(passes):
            x = torch.randn(2, 3, 5, 4, requires_grad=True)
            map, codes, loss = wrap(model, x)
            outs.append(map.square().mean() + loss)
            seen += [codes, outs[-1].detach()]
        if order is None:
            sum(outs).backward()
        else:
            for index in order:
                outs[index].backward()
        seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
    return [*seen, *(value.clone() for value in model.state_dict().values())]


def plain(model, x):
    return model(x)


def reentrant(model, x):
    return checkpoint(model, x, use_reentrant=True)


def no_reentry(model, x):
    return checkpoint(model, x, use_reentrant=False)


def nested(model, x):
    return checkpoint(lambda y: checkpoint(model, y, use_reentrant=False), x, use_reentrant=False)


def same(first, second):
    assert len(first) == len(second)
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:KMeans")
@pytest.mark.parametrize("wrap", [reentrant, no_reentry, nested], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_checkpoint_changes_nothing(name, wrap):
    model = Model(**SETTINGS[name])
    other = copy.deepcopy(model)
    assert same(run(model, plain), run(other, wrap))


@pytest.mark.parametrize("order", [None, (0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("wrap", [reentrant, no_reentry], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["fast", "restart"])
def test_several_passes_before_a_backward_pass(name, wrap, order):
    model = Model(**SETTINGS[name])
    other = copy.deepcopy(model)
    assert same(run(model, plain, order, passes=3), run(other, wrap, order, passes=3))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_same_features_twice_in_one_step(use_reentrant):
    x = torch.randn(2, 6, 5, 4)
    results = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        quantizer, z = DynamicQuantizer(6, 40, learning=EMA(decay=0.1)), x.clone().requires_grad_()
        outs = [checkpoint(quantizer, z, use_reentrant=use_reentrant) if wrapped else quantizer(z) for _ in range(2)]
        loss = sum((map * (1 + n)).sum() + loss for n, (map, _, loss) in enumerate(outs))
        results.append([*torch.autograd.grad(loss, z), *quantizer.state_dict().values()] if not use_reentrant else None)
        if use_reentrant:
            loss.backward()
            results[-1] = [z.grad, *quantizer.state_dict().values()]
    assert same(*results)


def test_codes_that_are_written_without_autograds_knowledge():
    """What is written to ``.data`` counts no version of the tensor, and still is what the next pass looked up in."""
    x, gradients = torch.randn(2, 6, 5, 4), []
    quantizer = DynamicQuantizer(6, 40).freeze()
    for call in (quantizer, lambda z: checkpoint(quantizer, z, use_reentrant=False)):
        quantizer.codes = torch.linspace(-1, 1, 240).view(40, 6)
        z = x.clone().requires_grad_()
        call(z)
        quantizer.codebook.weight.data.add_(3)
        gradients += torch.autograd.grad(call(z).loss, z)
    assert same(*[[each] for each in gradients])


def test_an_own_checkpoint_made_of_an_autograd_function():
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, quantizer, x):
            ctx.quantizer = quantizer
            ctx.save_for_backward(x)
            return quantizer(x).map

        @staticmethod
        def backward(ctx, gradient):
            x = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                ctx.quantizer(x).map.backward(gradient)
            return None, x.grad

    quantizer = DynamicQuantizer(6, 40, estimator=Rotation())
    other, x = copy.deepcopy(quantizer), torch.randn(2, 6, 5, 4, requires_grad=True)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(Again.apply(quantizer, x).square().sum(), x)
        (expected,) = torch.autograd.grad(other(x).map.square().sum(), x)
        assert torch.equal(gradient, expected)
    assert same(list(quantizer.state_dict().values()), list(other.state_dict().values()))


def test_a_pass_without_learning_and_accumulation():
    for wrap in (reentrant, no_reentry):
        results = []
        for way in (plain, wrap):
            torch.manual_seed(1)
            quantizer = DynamicQuantizer(6, 40, learning=EMA(decay=0.1))
            x = torch.randn(3, 2, 6, 5, 4, requires_grad=True)
            with quantizer.accumulate():
                first = [way(quantizer, part) for part in x[:2]]
            last = way(functools.partial(quantizer, learn=False), x[2])
            sum(map.square().sum() + loss for map, _, loss in (*first, last)).backward()
            results.append([x.grad, *quantizer.state_dict().values()])
        assert same(*results)


def test_nothing_is_kept_without_a_checkpoint():
    quantizer = DynamicQuantizer(6, 40)
    x = torch.randn(2, 6, 5, 4, requires_grad=True)
    for _ in range(3):
        quantizer(x).loss.backward()
    assert not quantizer._first_passes._passes
    for _ in range(3):
        checkpoint(quantizer, x, use_reentrant=False).loss.backward()
    assert len(quantizer._first_passes._passes) == 1
    for _ in range(40):
        with torch.no_grad():
            quantizer(x)
    assert len(quantizer._first_passes._passes) <= 16
    assert not copy.deepcopy(quantizer)._first_passes._passes


@pytest.mark.parametrize("reentrant", [False, True])
def test_many_passes_before_one_backward(reentrant):
    """As of the frames of a video: each repetition sees its own pass's codes, or there is an error."""
    images = [torch.randn(1, 6, 4, 4, requires_grad=True) for _ in range(24)]
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        quantizer = DynamicQuantizer(6, 40)
        call = functools.partial(checkpoint, quantizer, use_reentrant=reentrant) if again else quantizer
        total = sum(out[0].square().sum() + 9 * out[2] for out in map(call, images))
        if again and reentrant:
            with pytest.raises(InputError, match="too many passes"):
                total.backward()
            return
        gradients.append(torch.autograd.grad(total, images))
    for found, expected in zip(*gradients, strict=True):
        assert torch.equal(found, expected)


def test_a_new_pass_inside_a_backward_pass_learns():
    quantizer, x = DynamicQuantizer(6, 40), torch.randn(1, 6, 4, 4, requires_grad=True)
    checkpoint(quantizer, x, use_reentrant=False).loss.backward()
    before = quantizer.codes.clone()
    y = torch.randn(1, 6, 4, 4, requires_grad=True)
    z = y * 1
    z.register_hook(lambda grad: quantizer(torch.randn(1, 6, 4, 4)) and None)
    z.sum().backward()
    assert not torch.equal(quantizer.codes, before)


def test_one_pass_is_found_without_waiting():
    """Tensors without values stand for a GPU's."""
    passes, maps, codes = FirstPasses(), [torch.randn(1, 6, 4, 4, device="meta")], torch.randn(9, 6, device="meta")
    with torch.no_grad():
        passes.keep(maps, codes, learn=True)
    assert passes.find(maps).repeated
