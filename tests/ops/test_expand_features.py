import pytest
import torch

import dqcore
from dqcore.ops import expand_features, pack_codes
from dqcore.ops.layout import count_codes
from dqcore.ops.reference.expand_features import expand_features_reference
from dqcore.testing import assert_close

ORDERS = ["row-first", "region-first"]
# images, channels, rows, columns, granularities: whole tiles and parts of them, nothing, one, wider than a warp
SHAPES = [(0, 4, 2, 2, 2), (1, 1, 1, 1, 1), (2, 17, 3, 5, 2), (2, 64, 2, 8, 3), (1, 72, 1, 35, 2), (3, 0, 2, 2, 2)]
FORMATS = {"planes": torch.contiguous_format, "vectors": torch.channels_last}


def inputs(images, channels, rows, columns, num_granularities, device="cpu", dtype=torch.float32):
    grain = torch.randint(0, num_granularities, (images, rows, columns), device=device)
    return torch.randn(count_codes(grain), channels, device=device).to(dtype), grain


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("divide", [False, True])
def test_matches_reference(route, shape, dtype, memory, divide):
    packed, grain = inputs(*shape, route, dtype)
    packed = packed.mT.contiguous().mT  # not contiguous
    for order in ORDERS:
        arguments = (packed, grain, order, shape[-1], divide, memory == "vectors")
        features = torch.ops.dqcore.expand_features(*arguments)
        assert features.dtype == dtype
        assert features.is_contiguous(memory_format=FORMATS[memory])
        assert torch.equal(features, expand_features_reference(*arguments))


@pytest.mark.parametrize("order", ORDERS)
def test_agrees_with_pack_codes(route, order):
    # Vectors that name their row must land where pack_codes reads the codes.
    grain = torch.randint(0, 3, (3, 4, 5), device=route)
    rows = torch.arange(count_codes(grain), device=route)
    features = expand_features(rows[:, None].float(), grain, order=order, num_granularities=3)
    assert torch.equal(pack_codes(features[:, 0].long(), grain, order).codes, rows)


def test_by_hand(route):
    packed = torch.tensor([[7.0], [1], [2], [3], [4]], device=route)
    features = expand_features(packed, torch.tensor([[[1, 0]]], device=route), num_granularities=2)
    assert features.tolist() == [[[[1, 2, 7, 7], [3, 4, 7, 7]]]]


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("divide", [False, True])
def test_gradients_match_reference(route, memory, divide):
    packed, grain = inputs(2, 20, 3, 4, 3, route)
    weights = torch.randn(2, 20, 12, 16, device=route).contiguous(memory_format=FORMATS[memory])
    grads = []
    for run in (torch.ops.dqcore.expand_features, expand_features_reference):
        leaf = packed.clone().requires_grad_()
        (run(leaf, grain, "region-first", 3, divide, False) * weights).sum().backward()
        grads.append(leaf.grad)
    assert_close(*grads)


def test_gradcheck():
    packed, grain = inputs(2, 2, 1, 2, 3, dtype=torch.float64)

    def run(x):
        return expand_features(x, grain, num_granularities=3)

    assert torch.autograd.gradcheck(run, packed.requires_grad_())
    assert torch.autograd.gradgradcheck(run, packed)


@pytest.mark.parametrize("memory", FORMATS)
def test_gradient_is_deterministic(route, memory):
    packed, grain = inputs(3, 40, 5, 6, 3, route, torch.float16)
    weights = torch.randn(3, 40, 20, 24, device=route).half().contiguous(memory_format=FORMATS[memory])
    leaf = packed.requires_grad_()
    grads = [torch.autograd.grad(expand_features(leaf, grain, num_granularities=3), leaf, weights) for _ in range(3)]
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][0], grads[2][0])


def test_batch_equals_images(route):
    packed, grain = inputs(4, 33, 3, 4, 2, route, torch.bfloat16)
    features = expand_features(packed, grain, num_granularities=2)
    ends = [0, *(4**grain).flatten(1).sum(1).cumsum(0).tolist()]
    for i in range(4):
        alone = expand_features(packed[ends[i] : ends[i + 1]], grain[i : i + 1], num_granularities=2)
        assert torch.equal(alone[0], features[i])


@pytest.mark.parametrize("memory", FORMATS.values(), ids=FORMATS)
def test_threads_change_nothing(memory):
    packed, grain = inputs(48, 64, 16, 16, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = expand_features(packed, grain, num_granularities=2, memory_format=memory)
        torch.set_num_threads(7)
        assert torch.equal(expand_features(packed, grain, num_granularities=2, memory_format=memory), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last):
    packed, grain = inputs(2, 3, 2, 3, 2)
    args = (packed.requires_grad_(), grain, "row-first", 2, False, channels_last)
    torch.library.opcheck(torch.ops.dqcore.expand_features.default, args)


def test_compiles():
    packed, grain = inputs(2, 3, 2, 3, 2)
    compiled = torch.compile(expand_features, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (packed, packed.clone().requires_grad_()):
        actual = compiled(rows, grain, num_granularities=2)
        assert torch.equal(actual, expand_features(rows, grain, num_granularities=2))
    actual.sum().backward()
    assert torch.equal(rows.grad[0], torch.full((3,), 4.0))  # a coarse code comes first, and fills four cells


@pytest.mark.parametrize(
    ("packed", "options", "message"),
    [
        (torch.zeros(2), {}, "packed: expected 2 dimensions"),
        (torch.zeros(1, 2).long(), {}, "packed: expected float16"),
        (torch.zeros(3, 2), {}, "packed: expected 1 codes, as grain asks for, got 3"),
        (torch.zeros(1, 2), {"num_granularities": 0}, "num_granularities: expected at least 1"),
        (torch.zeros(1, 2), {"num_granularities": 20}, r"grain: expected fewer than 2\*\*31 cells"),
        (torch.zeros(1, 2), {"order": "raster"}, "order: expected"),
        (torch.zeros(1, 2), {"memory_format": torch.channels_last_3d}, "memory_format: expected"),
        (torch.zeros(1, 2, device="meta"), {}, "expected one device"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_invalid_input(packed, options, message, backend):
    with dqcore.backend(backend), pytest.raises((TypeError, ValueError), match=message):
        expand_features(packed, torch.zeros(1, 1, 1, dtype=torch.int64), **{"num_granularities": 2} | options)


def test_grain_out_of_range():
    with pytest.raises(ValueError, match=r"grain: expected values in \[0, 2\)"):
        expand_features(torch.zeros(1, 2), torch.full((1, 1, 1), 2), num_granularities=2)
