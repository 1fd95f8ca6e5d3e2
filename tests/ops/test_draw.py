"""Draws on every route: against the cumulative distribution in float64, at ties and extremes, and of rows with NaN."""

import pytest
import torch

import dqcore
from dqcore.kernels.tape import BITS
from dqcore.ops.draw import draw

SETTINGS = [(1.0, None, 1.0), (0.7, 3, 1.0), (2.5, None, 0.6), (0.9, 6, 0.8), (1e-30, None, 1.0), (1e30, 2, 1e-9)]
BLOCK = 2  # of a long row in short
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
    check(logits, numbers, draw(logits.to(route), numbers.to(route), *how), how)


def check(logits, numbers, drawn, how):
    """Indices are those at which cumulative probabilities pass the numbers."""
    assert drawn.dtype == torch.int64 and drawn.shape == numbers.shape
    for row, number, index in zip(logits, numbers.tolist(), drawn.tolist(), strict=True):
        p, open_ = exactly(row, *how)
        if not open_:
            assert p[index] > 0
            end = p[: index + 1].sum()
            assert end - p[index] - NEAR <= number / (1 << BITS) < end + NEAR


@pytest.mark.parametrize(
    ("count", "how"),
    [(8193, (0.3, None, 0.9)), (16384, (0.7, 300, 1.0)), (20000, (0.2, 6000, 0.8)), (8192 * 3, (1.0, None, 1.0))],
)
def test_long_rows_are_drawn_from_alike(route, count, how):
    """Peaked, so that the last of a nucleus is not as small as what rounding leaves open; some blocks ruled out."""
    logits, numbers = 2 * torch.randn(1, count), torch.tensor([7 << BITS - 3])
    logits[0, :4096], logits[0, 5000:5100] = -torch.inf, -torch.inf
    assert not exactly(logits[0], *how)[1]
    check(logits, numbers, draw(logits.to(route), numbers.to(route), *how), how)


def test_long_rows_keep_ties_of_all_blocks(route):
    """Of 20,000 equal logits the top one are all; so are those of a nucleus."""
    numbers = torch.tensor([1 << BITS - 1, (1 << BITS) - 1], device=route)
    rows = torch.zeros(1, 20000, device=route).expand(2, -1)
    assert draw(rows, numbers, 0.5, 1, 1.0).tolist() == [10000, 19999]
    assert draw(rows[1:], numbers[1:], 1.0, None, 1e-9).tolist() == [19999]


@pytest.mark.parametrize("where", [0, 5000, 20000])
def test_long_rows_with_nan_are_drawn_from_inside(route, where):
    if dqcore.backends.route(torch.device(route)) != "gpu":
        pytest.skip("PyTorch's searchsorted may return one past the end")
    logits = torch.randn(1, 20001, device=route)
    logits[0, where] = torch.nan
    assert draw(logits, torch.tensor([5], device=route), 1.0, 100, 0.5).tolist() == [20000]


def drawn_of(route, logits, *how):
    """All indices that a row of logits gives to 3 numbers evenly apart, and the last."""
    numbers = torch.tensor([0, 3 << BITS - 3, 5 << BITS - 3, (1 << BITS) - 1], device=route)
    rows = torch.tensor([logits], device=route).expand(len(numbers), -1)
    return set(draw(rows, numbers, *how).tolist())


INF = torch.inf
TIES = [
    ([1.0, 2.0, 1.0, 0.0, -INF], (2.0, 2, 1.0), {0, 1, 2}),
    ([-0.0, -1.0, 0.0, -INF], (1.0, 1, 1.0), {0, 2}),  # both zeros are one number
    ([0.0, 0.5, 0.0, -1.0], (1.0, None, 0.6), {0, 1, 2}),  # 0.25, 0.41, 0.25, 0.09
    ([0.0, 0.5, 0.0, -1.0], (1.0, None, 0.4), {1}),
    ([5.0, 5.0, 5.0], (1.0, 1, 1e-12), {0, 1, 2}),
    ([-INF, -3e38, -INF], (1.0, 3, 0.5), {1}),
    ([3e38, -3e38, 1.0], (1.0, 4, 0.999), {0}),
    ([4.0, 4.0, 1.0, 3.0, 3.0, 3.0], (9.0, 2, 1.0), {0, 1}),  # three more begin with the same bits but one
    ([1.8, 1.5 - 2.0**-23, 1.75, -INF], (1.35, 2, 1.0), {0, 2}),  # 1.5, which tells them apart, has the quotient of one
]


@pytest.mark.parametrize(("logits", "how", "drawn"), TIES)
def test_ties_stay_together(route, logits, how, drawn):
    assert drawn_of(route, logits, *how) == drawn


@pytest.mark.parametrize(("logits", "how", "drawn"), TIES)
def test_ties_stay_together_in_blocks(blocks, logits, how, drawn):
    assert drawn_of(blocks, logits, *how) == drawn


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


def test_it_is_an_op(route):
    args = (torch.randn(2, 5, device=route), torch.tensor([3, 1 << 20], device=route), 1.0, 2, 1.0)
    torch.library.opcheck(torch.ops.dqcore.draw, args, test_utils=("test_schema", "test_faketensor"))
