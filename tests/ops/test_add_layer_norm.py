"""A residual sum and its normalization: values and gradients on every route, the mask of dropout, odd sizes."""

import pytest
import torch
from torch.nn import functional as F

from dqcore import backends
from dqcore.errors import InputError
from dqcore.ops import add_layer_norm, dropout_mask
from dqcore.testing import assert_close

HALF = (torch.float16, torch.bfloat16)
EPS = 1e-5


def problem(route, rows, channels, dtype=torch.float32, branch_dtype=None):
    """Summands far from 0, gain and offset, and two gradients."""
    x = (3 * torch.randn(rows, channels) + 5).to(route, dtype).requires_grad_()
    branch = torch.randn(rows, channels).to(route, branch_dtype or dtype).requires_grad_()
    weight, bias = (torch.randn(channels).to(route, dtype).requires_grad_() for _ in range(2))
    return (x, branch, weight, bias), [torch.randn(rows, channels, device=route) for _ in range(2)]


def exact(tensors, kept):
    """The same in float64, where ``kept`` is by what the branch is multiplied; the sum is rounded as it is stored."""
    x, branch, weight, bias = (value.detach().double().requires_grad_() for value in tensors)
    stored = torch.promote_types(tensors[0].dtype, tensors[1].dtype)
    total = x + branch * kept
    total = total + (total.detach().to(stored).double() - total.detach())
    return (x, branch, weight, bias), total, F.layer_norm(total, weight.shape, weight, bias, EPS)


@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (3, 64), (70, 96), (34, 1024), (2, 2500)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF, torch.float64])
def test_values_and_gradients(route, shape, dtype):
    tensors, weights = problem(route, *shape, dtype)
    total, normed = add_layer_norm(*tensors, eps=EPS)
    assert total.dtype == normed.dtype == dtype
    doubles, expected, expected_normed = exact(tensors, 1.0)
    assert_close(total, expected)
    assert_close(normed, expected_normed)
    out = sum((value * w.to(dtype)).sum() for value, w in zip((total, normed), weights, strict=True))
    wanted = sum((v * w.to(dtype).double()).sum() for v, w in zip((expected, expected_normed), weights, strict=True))
    grads = torch.autograd.grad(out, tensors)
    assert [grad.dtype for grad in grads] == [dtype] * 4
    own = backends.route(torch.device(route)) == "cpu" and dtype in HALF  # PyTorch adds up half precision there
    for grad, double in list(zip(grads, torch.autograd.grad(wanted, doubles), strict=True))[: 2 if own else 4]:
        assert_close(grad / 2, double / 2)  # sums over rows are about 2 units and more


@pytest.mark.parametrize("branch_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [40, 200])
def test_dropout_is_that_of_the_mask(route, channels, branch_dtype):
    tensors, weights = problem(route, 9, channels, branch_dtype=branch_dtype)
    seed = torch.tensor([7, 3], device=route)
    total, normed = add_layer_norm(*tensors, dropout_p=0.25, dropout_seed=seed)
    kept = dropout_mask(seed, 1, 9, channels, 0.25)[0] / 0.75
    assert 0.5 < (kept > 0).float().mean() < 0.95
    doubles, expected, expected_normed = exact(tensors, kept.double())
    assert_close(total, expected)
    assert_close(normed, expected_normed)
    grads = torch.autograd.grad((total * weights[0] + normed * weights[1]).sum(), tensors)
    wanted = torch.autograd.grad((expected * weights[0] + expected_normed * weights[1]).sum(), doubles)
    assert [grad.dtype for grad in grads] == [torch.float32, branch_dtype, torch.float32, torch.float32]
    assert (grads[1] == 0)[kept == 0].all()
    for grad, double in zip(grads, wanted, strict=True):
        assert_close(grad, double)


def test_a_branch_of_another_dtype_without_dropout(route):
    tensors, weights = problem(route, 9, 40, branch_dtype=torch.bfloat16)
    total, normed = add_layer_norm(*tensors)
    doubles, expected, expected_normed = exact(tensors, 1.0)
    grads = torch.autograd.grad((total * weights[0] + normed * weights[1]).sum(), tensors)
    wanted = torch.autograd.grad((expected * weights[0] + expected_normed * weights[1]).sum(), doubles)
    assert [grad.dtype for grad in grads] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    for grad, double in zip(grads, wanted, strict=True):
        assert_close(grad, double)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kinds", [(torch.float32, torch.float32), (torch.bfloat16, torch.float16)])
def test_weights_of_other_dtypes(route, dtype, kinds):
    tensors, (one, _) = problem(route, 5, 40, dtype)
    pairs = zip(tensors[2:], kinds, strict=True)
    given = [*tensors[:2], *(value.detach().to(kind).requires_grad_() for value, kind in pairs)]
    _, normed = add_layer_norm(*given)
    doubles, _, expected = exact(given, 1.0)
    assert normed.dtype == dtype
    assert_close(normed, expected)
    grads = torch.autograd.grad((normed * one.to(dtype)).sum(), given[2:])
    assert [grad.dtype for grad in grads] == list(kinds)
    wanted = torch.autograd.grad((expected * one.to(dtype).double()).sum(), doubles[2:])
    for grad, double in zip(grads, wanted, strict=True):
        assert_close(grad / 8, double / 8, torch.bfloat16)


def test_dropout_is_drawn_anew(route):
    (x, branch, weight, bias), _ = problem(route, 64, 64)
    first, second = (add_layer_norm(x, branch.detach(), weight, bias, dropout_p=0.5)[0] for _ in range(2))
    shares = [(out - x == 0).float().mean().item() for out in (first, second)]
    assert not torch.equal(first, second) and all(0.4 < share < 0.6 for share in shares)


def test_autocast_asks_for_the_product_s_dtype(route):
    tensors, _ = problem(route, 6, 48, branch_dtype=torch.bfloat16)
    plain = add_layer_norm(*tensors)
    with torch.autocast(route, torch.bfloat16):
        total, normed = add_layer_norm(*tensors)
    assert torch.equal(total, plain[0]) and total.dtype == torch.float32
    assert torch.equal(normed, plain[1].bfloat16())


def test_nothing_and_what_is_not_finite(route):
    tensors, _ = problem(route, 4, 33)
    for out in add_layer_norm(tensors[0][:0], tensors[1][:0], *tensors[2:]):
        assert out.shape == (0, 33)
    seed = torch.tensor([1, 2], device=route)
    grads = torch.autograd.grad(
        add_layer_norm(tensors[0][:0], tensors[1][:0], *tensors[2:], dropout_seed=seed)[1].sum(), tensors
    )
    assert [float(grad.abs().sum()) for grad in grads] == [0.0] * 4
    with torch.no_grad():
        tensors[0][1, 2] = torch.inf
    normed = add_layer_norm(*tensors)[1]
    assert normed.isnan().any(1).tolist() == [False, True, False, False]


def test_strides_and_rows_alone(route):
    tensors, _ = problem(route, 12, 80)
    x, branch, weight, bias = (value.detach() for value in tensors)
    plain = add_layer_norm(x, branch, weight, bias)
    apart = add_layer_norm(x.T.contiguous().T, branch[:, None].expand(-1, 2, -1)[:, 1], weight, bias)
    deep = add_layer_norm(x.view(3, 4, 80), branch.view(3, 4, 80), weight, bias)
    alone = add_layer_norm(x[3:4], branch[3:4], weight, bias)
    for value, other, one, more in zip(plain, apart, alone, deep, strict=True):
        assert torch.equal(more.view(12, 80), value)
        assert_close(other, value.double())
        assert_close(one, value[3:4].double())


def test_it_compiles_and_is_an_op(route):
    tensors, _ = problem(route, 3, 70)
    seed = torch.tensor([1, 2], device=route)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    for keep, given in ((256, None), (200, seed)):
        arguments = (*tensors, given, keep, EPS, torch.float32)
        torch.library.opcheck(torch.ops.dqcore.add_layer_norm, arguments, test_utils=tests)
    run = torch.compile(add_layer_norm, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(run(*tensors), add_layer_norm(*tensors), strict=True):
        assert torch.equal(mine, theirs)


ONES = torch.ones(3, 4), torch.ones(3, 4), torch.ones(4), torch.ones(4)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.ones(3), "x: expected two dimensions or more"),
        (0, torch.ones(3, 4, dtype=torch.int64), "x: expected float16, .* got int64"),
        (1, torch.ones(3, 5), r"branch: expected x's shape \(3, 4\)"),
        (2, torch.ones(5), r"weight: expected shape \(4,\), got \(5,\)"),
        (3, torch.ones(5), r"bias: expected shape \(4,\), got \(5,\)"),
    ],
)
def test_refuses(place, value, message):
    given = list(ONES)
    given[place] = value
    with pytest.raises((InputError, TypeError), match=message):
        add_layer_norm(*given)
    with pytest.raises(InputError, match="dropout_seed: expected two values"):
        add_layer_norm(*ONES, dropout_seed=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="dropout_p: expected a probability"):
        add_layer_norm(*ONES, dropout_p=1.0)
    with pytest.raises(InputError, match="eps: expected a number from 0 up, got -1"):
        add_layer_norm(*ONES, eps=-1)
