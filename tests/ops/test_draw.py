"""Draws on every route: against the cumulative distribution in float64, at ties and extremes, and of rows with NaN."""

import pytest
import torch

import dqcore
from dqcore.kernels.tape import BITS
from dqcore.ops.draw import draw

SETTINGS = [(1.0, None, 1.0), (0.7, 3, 1.0), (2.5, None, 0.6), (0.9, 6, 0.8), (1e-30, None, 1.0), (1e30, 2, 1e-9)]
NEAR = 1e-5  # how far float32 probabilities may move a boundary between two indices


def some_logits(rows, count):
    """Random ones, some of them equal, a third of them ruled out."""
    logits = (2 * torch.randn(rows, count)).round(decimals=1)
    logits[:, 1:][torch.rand(rows, count - 1) < 0.3] = -torch.inf
    return logits


def exactly(logits, temperature, top_k, top_p):
    """Probabilities in float64 of what may be drawn, and whether the nucleus is too close to call."""
    x = (logits.float() / temperature).double()
    if top_k is not None and top_k < len(x):
        x[x < x.sort(descending=True).values[top_k - 1]] = -torch.inf
    p = x.softmax(0)
    ordered = p.sort(descending=True).values
    reached = ordered.cumsum(0)
    open_ = bool(((reached - top_p).abs() < NEAR).any()) and top_p < 1
    if top_p < 1:
        p = torch.where(p >= ordered[(reached < top_p).sum().clamp_max(len(p) - 1)] * (1 - NEAR), p, 0.0)
    return p / p.sum(), open_


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize("count", [1, 7, 130])
def test_draws_are_those_of_the_distribution(route, count, how):
    logits, numbers = some_logits(6, count), torch.randint(1 << BITS, (6,))
    numbers[:2] = torch.tensor([0, (1 << BITS) - 1])
    drawn = draw(logits.to(route), numbers.to(route), *how)
    assert drawn.dtype == torch.int64 and drawn.shape == (6,)
    for row, number, index in zip(logits, numbers.tolist(), drawn.tolist(), strict=True):
        p, open_ = exactly(row, *how)
        if not open_:
            assert p[index] > 0
            end = p[: index + 1].sum()
            assert end - p[index] - NEAR <= number / (1 << BITS) < end + NEAR


def drawn_of(route, logits, *how):
    """All indices that a row of logits gives to 3 numbers evenly apart, and the last."""
    numbers = torch.tensor([0, 3 << BITS - 3, 5 << BITS - 3, (1 << BITS) - 1], device=route)
    rows = torch.tensor([logits], device=route).expand(len(numbers), -1)
    return set(draw(rows, numbers, *how).tolist())


INF = torch.inf


@pytest.mark.parametrize(
    ("logits", "how", "drawn"),
    [
        ([1.0, 2.0, 1.0, 0.0, -INF], (2.0, 2, 1.0), {0, 1, 2}),
        ([-0.0, -1.0, 0.0, -INF], (1.0, 1, 1.0), {0, 2}),  # both zeros are one number
        ([0.0, 0.5, 0.0, -1.0], (1.0, None, 0.6), {0, 1, 2}),  # 0.25, 0.41, 0.25, 0.09
        ([0.0, 0.5, 0.0, -1.0], (1.0, None, 0.4), {1}),
        ([5.0, 5.0, 5.0], (1.0, 1, 1e-12), {0, 1, 2}),
        ([-INF, -3e38, -INF], (1.0, 3, 0.5), {1}),
        ([3e38, -3e38, 1.0], (1.0, 4, 0.999), {0}),
    ],
)
def test_ties_stay_together(route, logits, how, drawn):
    assert drawn_of(route, logits, *how) == drawn


def test_a_set_that_never_reaches_its_sum_is_whole(route):
    """Rounded down, probabilities add up to a little less than 1."""
    assert drawn_of(route, [0.0] * 3, 1.0, None, 1 - 2.0**-53) == {0, 1, 2}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_strides(route, dtype):
    wide = (2 * torch.randn(3, 40)).to(route, dtype)
    numbers = torch.tensor([[5, 1 << 20], [1 << 22, 3], [77, 88]], device=route)
    for logits in (wide[:, :33], wide.T.contiguous().T[:, 3:20]):
        expected = draw(logits.float().contiguous(), numbers[:, 0].contiguous(), 1.0, 5, 1.0)
        assert torch.equal(draw(logits, numbers[:, 0], 1.0, 5, 1.0), expected)
    assert draw(wide[:0], numbers[:0, 0], 1.0, 5, 1.0).shape == (0,)


def test_equal_logits_share_evenly(route):
    numbers = torch.arange(0, 1 << BITS, 1 << BITS - 3, device=route)
    assert draw(torch.zeros(8, 8, device=route), numbers, 1.0, None, 1.0).tolist() == list(range(8))


@pytest.mark.parametrize("how", [(1.0, None, 1.0), (0.5, 2, 0.5)])
def test_whatever_the_logits_are_kernels_stay_inside(route, how):
    if dqcore.backends.route(torch.device(route)) != "gpu":
        pytest.skip("PyTorch's searchsorted may return one past the end")
    logits = torch.randn(4, 9)
    logits[0], logits[1, 3], logits[2], logits[3, 2] = torch.nan, torch.nan, -torch.inf, torch.inf
    drawn = draw(logits.to(route), torch.full((4,), (1 << BITS) - 1, device=route), *how)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 9


def test_longer_rows_take_the_reference(route, monkeypatch):
    if dqcore.backends.route(torch.device(route)) == "gpu":
        from dqcore.kernels import draw as kernel

        monkeypatch.setattr(kernel, "LONGEST", 4)
        monkeypatch.setattr(kernel, "draw_fwd", None)  # what cannot be called
    logits, numbers = torch.randn(3, 5, device=route), torch.tensor([0, 1 << 22, 9], device=route)
    with dqcore.backend("reference"):
        expected = draw(logits, numbers, 1.0, 2, 1.0)
    assert torch.equal(draw(logits, numbers, 1.0, 2, 1.0), expected)


def test_it_is_an_op(route):
    args = (torch.randn(2, 5, device=route), torch.tensor([3, 1 << 20], device=route), 1.0, 2, 1.0)
    torch.library.opcheck(torch.ops.dqcore.draw, args, test_utils=("test_schema", "test_faketensor"))
