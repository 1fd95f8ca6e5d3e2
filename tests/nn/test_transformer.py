"""A stack of blocks on the way of GPUs: what its kernels compute is what the specification does, dropout included."""

import pytest
import torch

import dqcore
from dqcore.nn.transformer import Transformer, initialise

ENDS = torch.tensor([0, 3, 3, 8], dtype=torch.int32)


@pytest.fixture
def stack():
    """Two blocks whose biases and normalizations do something."""
    torch.manual_seed(0)
    model = Transformer(16, 1, 2, 0.25)
    initialise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def outcome(model, backend, *, autocast=False, checkpointing=False):
    """Output and gradients with the same random numbers on every backend."""
    model.checkpointing = checkpointing
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    torch.manual_seed(1)
    with dqcore.backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(x, ENDS)
        grads = torch.autograd.grad(out.float().square().sum(), (x, *model.parameters()))
    return [out.detach(), *grads]


def assert_like(actual, expected, tolerance):
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_equals_the_specification(stack, checkpointing):
    expected = outcome(stack, "reference", checkpointing=checkpointing)
    assert_like(outcome(stack, "interpreter", checkpointing=checkpointing), expected, 1e-5)
    assert not torch.allclose(expected[0], outcome(stack.eval(), "reference")[0])  # something was dropped


def test_training_under_autocast(stack):
    expected = outcome(stack, "reference", autocast=True)
    assert expected[0].dtype == torch.float32  # residuals stay wide
    assert_like(outcome(stack, "interpreter", autocast=True), expected, 0.03)


@pytest.mark.parametrize("backend", ["reference", "interpreter"])
def test_without_dropout_all_ways_agree(stack, backend):
    assert_like(outcome(stack.eval(), backend), outcome(stack, "auto"), 1e-5)


def test_every_dropout_has_a_seed_of_its_own(stack, monkeypatch):
    seen, functions = [], vars(dqcore.ops).copy()
    for module, name in (("transformer", "add_layer_norm"), ("attention", "varlen_attention_packed")):

        def noted(*args, function=functions[name], **named):
            seen.append(tuple(named["dropout_seed"].tolist()))
            return function(*args, **named)

        monkeypatch.setattr(f"dqcore.nn.{module}.{name}", noted)
    outcome(stack, "reference")
    assert len(seen) == len(set(seen)) == 5  # two of attention, three of sums; the last branch has PyTorch's own


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_on_the_way_of_gpus(stack, dtype):
    stack.eval().to(dtype)
    x = torch.randn(6, 16).to(dtype)
    with dqcore.backend("interpreter"):
        whole = stack(x, torch.tensor([0, 3, 6], dtype=torch.int32))
        cache = stack.new_cache(3, torch.zeros(2, dtype=torch.int32), torch.ones(2, dtype=torch.bool))
        for i in range(3):
            out = stack.step(x[i::3], cache)
            torch.testing.assert_close(out, whole[i::3], rtol=0, atol=1e-4 if dtype == torch.float32 else 0.15)
            cache.lengths.add_(1)
