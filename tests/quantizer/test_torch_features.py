"""``torch.func`` transforms, second derivatives, parametrizations and averaged weights."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel

from dqcore import DQVAE, DynamicQuantizer
from dqcore.codebook import EMA, Gradient, KMeans, RandomRestart
from dqcore.errors import InputError


def test_second_derivatives_and_transforms():
    quantizer, x = DynamicQuantizer(4, 8).eval(), torch.randn(2, 4, 4, 4, requires_grad=True)
    quantizer.codes = torch.randn(8, 4)
    out, weight, e = quantizer(x), torch.randn(2, 4, 4, 4), quantizer(x).map.detach()

    def penalty(quantized, loss, x):
        (grad,) = torch.autograd.grad((quantized.pow(3) * weight).sum() + 10 * loss, x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    expected = penalty(x + (e - x).detach(), 0.25 * (x - e).square().mean(), x)
    torch.testing.assert_close(penalty(out.map, out.loss, x), expected, rtol=1e-5, atol=1e-4)
    tangent = torch.randn_like(x)
    _, found = torch.func.jvp(lambda x: quantizer(x).map, (x.detach(),), (tangent,))
    assert torch.equal(found, tangent)
    torch.testing.assert_close(torch.func.grad(lambda x: quantizer(x).map.sum())(x.detach()), torch.ones_like(x))


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (5, 4)])
def test_vmap_over_an_evaluation(shape):
    quantizer, x = DynamicQuantizer(4, 8).eval(), torch.randn(3, *shape)
    quantizer.codes = torch.randn(8, 4)
    found = torch.vmap(lambda one: tuple(quantizer(one)[:2]))(x)
    for of_all, of_each in zip(found, zip(*(quantizer(one)[:2] for one in x), strict=True), strict=True):
        assert torch.equal(of_all, torch.stack(of_each))


@pytest.mark.parametrize("learning", [EMA(), EMA(every=2), Gradient()], ids=str)
@pytest.mark.parametrize("transform", [torch.vmap, lambda call: torch.func.grad(lambda x: call(x).sum())])
def test_no_codebook_learns_within_a_transform(transform, learning):
    """What waits for an update would be a tensor that the transform has left."""
    quantizer, x = DynamicQuantizer(4, 8, learning=learning), torch.randn(3, 2, 4, 4, 4)
    with pytest.raises(InputError, match="learn: no codebook learns within"):
        transform(lambda one: quantizer(one.flatten(0, -4)).map)(x)
    assert transform(lambda one: quantizer(one.flatten(0, -4), learn=False).map)(x).isfinite().all()
    quantizer(x[0])
    quantizer(x[1])


def test_what_would_be_lost_in_a_parametrization_is_an_error():
    for options, lost in (({}, True), ({"learning": Gradient(), "restart": None}, False)):
        quantizer = DynamicQuantizer(4, 8, **options)
        torch.nn.utils.parametrize.register_parametrization(quantizer.codebook, "weight", torch.nn.Identity())
        with pytest.raises(InputError, match=r"codebook\.weight: a parametrization") if lost else nullcontext():
            quantizer(torch.randn(2, 4, 4, 4))
        with pytest.raises(InputError, match=r"codebook\.weight: a parametrization"):
            quantizer.codes = torch.randn(8, 4)
        assert quantizer.eval()(torch.randn(2, 4, 4, 4)).map.isfinite().all()


def test_averages_of_weights_with_buffers():
    quantizer = DynamicQuantizer(4, 8)
    average, seen = AveragedModel(quantizer, use_buffers=True), []
    for _ in range(3):
        quantizer(torch.randn(2, 4, 4, 4))
        average.update_parameters(quantizer)
        seen.append(quantizer.codes.clone())
    torch.testing.assert_close(average.module.codes, torch.stack(seen).mean(0))
    assert average.eval()(torch.randn(2, 4, 4, 4)).codes.max() >= 0


FAKED = [{}, {"learning": Gradient()}, {"initialisation": KMeans()}, {"restart": RandomRestart()}, {"codebook_dim": 4}]


def fake_step(quantizer):
    maps = [torch.randn(2, 8, size, size, requires_grad=True) for size in (4, 8)]
    out = quantizer(maps, torch.randint(0, 2, (2, 4, 4)))
    (out.map.sum() + out.loss).backward()
    return out.codes, maps[1].grad


@pytest.mark.parametrize("options", FAKED, ids=lambda options: next(iter(options), "default"))
def test_a_step_on_fake_tensors(options):
    """As counters of memory and of operations make: nothing has a value."""
    with FakeTensorMode():
        quantizer = DynamicQuantizer(8, 32, 2, **options)
        for _ in range(2):
            codes, grad = fake_step(quantizer)
    assert codes.shape == (2, 8, 8) and grad.shape == (2, 8, 8, 8)


def test_a_step_on_fake_tensors_leaves_a_layer_as_it_was():
    quantizer, grain = DynamicQuantizer(8, 32, 2, initialisation=KMeans()), torch.zeros(2, 4, 4, dtype=torch.long)
    twin = copy.deepcopy(quantizer)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake_step(quantizer)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    x = torch.randn(2, 8, 8, 8)
    for layer in (quantizer, twin):
        layer([x[..., ::2, ::2], x], grain)
    assert torch.equal(quantizer.codes, twin.codes), "its first batch still starts it"


def test_a_tokenizer_on_fake_tensors():
    model = DQVAE.from_preset("dqvae-dual-tiny")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.zeros(2, 3, 64, 64)).reconstruction.shape == (2, 3, 64, 64)
