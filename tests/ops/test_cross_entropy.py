"""Cross-entropy by rows: value and gradient on every route, odd sizes, strides, and targets that cannot be."""

import pytest
import torch
from torch.nn import functional as F

from dqcore.errors import InputError
from dqcore.ops import cross_entropy
from dqcore.testing import assert_close

HALF = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (3, 1024), (2, 2500)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF, torch.float64])
def test_value_and_gradient(route, shape, dtype):
    logits = (4 * torch.randn(shape, device=route)).to(dtype).requires_grad_()
    targets, weight = torch.randint(shape[1], shape[:1], device=route), torch.rand(shape[0], device=route)
    losses = cross_entropy(logits, targets)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    assert_close(losses, expected)
    (grad,) = torch.autograd.grad((losses * weight.to(losses.dtype)).sum(), logits)
    assert grad.dtype == dtype
    assert_close(grad, torch.autograd.grad((expected * weight.double()).sum(), exact)[0])


def test_large_logits_and_strides(route):
    wide = torch.randn(4, 64, device=route) * 1e4
    wide[0, :] = -torch.inf
    wide[0, 3] = 5.0
    targets = torch.tensor([3, 0, 1, 30], device=route)
    for logits in (wide[:, :40], wide.T.contiguous().T[:, :40]):
        expected = F.cross_entropy(logits.double(), targets, reduction="none")
        assert_close(cross_entropy(logits, targets), expected)
    assert cross_entropy(wide[:0], targets[:0]).shape == (0,)
    wide[1, 2] = torch.nan
    assert cross_entropy(wide, targets).isnan().tolist() == [False, True, False, False]


def test_it_compiles_and_is_an_op(route):
    logits = torch.randn(3, 9, device=route, requires_grad=True)
    targets = torch.zeros(3, dtype=torch.int64, device=route)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.dqcore.cross_entropy, (logits, targets), test_utils=tests)
    run = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(logits, targets), cross_entropy(logits, targets))


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.randn(3, 4), torch.tensor([0, 4, 1]), r"targets: expected values in \[0, 4\), got 0 to 4"),
        (torch.randn(3, 4), torch.tensor([0, -1, 1]), "targets: expected values"),
        (torch.randn(3, 4), torch.tensor([0, 1]), "targets: expected one for each row"),
        (torch.randn(3, 0), torch.tensor([0, 0, 0]), "targets: expected one for each row"),
        (torch.randn(3), torch.tensor([0, 1, 1]), "logits"),
    ],
)
def test_refuses(logits, targets, message):
    with pytest.raises(InputError, match=message):
        cross_entropy(logits, targets)
