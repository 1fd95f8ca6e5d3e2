"""The loss of a lookup: its value and its gradient, for maps that one program adds up and for larger ones."""

import pytest
import torch

from dqcore.errors import InputError
from dqcore.ops import lookup_loss
from dqcore.testing import assert_close


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (1, 260, 256)])
@pytest.mark.parametrize("coded", [0.0, 0.5, 1.0])
def test_value_and_gradient(route, shape, coded):
    codes = torch.where(torch.rand(shape) < coded, 3, -1).to(route)
    error = torch.where(codes < 0, 0, torch.rand(shape, device=route)).requires_grad_()
    loss, commitment, rest = lookup_loss(error, codes, 8, 0.25)
    mean = error.detach().double().sum() / (8 * max(1, int((codes >= 0).sum())))
    for value, factor in ((loss, 1.25), (commitment, 0.25), (rest, 1)):
        assert_close(value.detach(), factor * mean)
    slope = 0.25 / (8 * max(1, int((codes >= 0).sum())))
    for outputs, factor in (([loss], 1), ([commitment], 1), ([loss, commitment], 2)):
        (grad,) = torch.autograd.grad(outputs, error, retain_graph=True)
        assert_close(grad, torch.full_like(grad, factor * slope))
    assert not rest.requires_grad
    loss += 1  # an output of its own, no view


def test_without_a_gradient():
    error, codes = torch.rand(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int64)
    assert not lookup_loss(error, codes, 8, 0.25).loss.requires_grad


def test_compiles():
    error, codes = torch.rand(2, 3, 3, requires_grad=True), torch.zeros(2, 3, 3, dtype=torch.int64)
    compiled = torch.compile(lambda error: lookup_loss(error, codes, 8, 0.25).loss, backend="eager", fullgraph=True)
    (expected,) = torch.autograd.grad(lookup_loss(error, codes, 8, 0.25).loss, error)
    (grad,) = torch.autograd.grad(compiled(error), error)
    assert_close(grad, expected)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="codes: expected shape"):
        lookup_loss(torch.rand(2, 3, 3), torch.zeros(2, 3, 4, dtype=torch.int64), 8, 0.25)
    with pytest.raises(InputError, match="dim: expected at least 1, got 0"):
        lookup_loss(torch.rand(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int64), 0, 0.25)
