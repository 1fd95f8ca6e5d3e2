import pytest
import torch

import dqcore
from dqcore.ops import expand_features, pack_features
from dqcore.ops.layout import count_codes
from dqcore.ops.reference.pack_features import pack_features_reference

ORDERS = ["row-first", "region-first"]
# images, channels, rows, columns, granularities: whole tiles and parts of them, nothing, one, wider than a warp
SHAPES = [(0, 4, 2, 2, 2), (1, 1, 1, 1, 1), (2, 17, 3, 5, 2), (2, 64, 2, 8, 3), (1, 72, 1, 35, 2), (3, 0, 2, 2, 2)]
FORMATS = {"planes": torch.contiguous_format, "vectors": torch.channels_last}


def inputs(images, channels, rows, columns, num_granularities, device="cpu", dtype=torch.float32):
    shift = num_granularities - 1
    grain = torch.randint(0, num_granularities, (images, rows, columns), device=device)
    return torch.randn(images, channels, rows << shift, columns << shift, device=device).to(dtype), grain


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("memory", ["planes", "vectors", "neither"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_matches_reference(route, shape, dtype, memory, reduction):
    features, grain = inputs(*shape, route, dtype)
    if memory == "neither":
        features = features.repeat_interleave(2, 3)[..., ::2].mT.contiguous().mT
    else:
        features = features.contiguous(memory_format=FORMATS[memory])
    for order in ORDERS:
        packed = pack_features(features, grain, order=order, num_granularities=shape[-1], reduction=reduction)
        total = count_codes(grain)
        assert packed.shape == (total, shape[1]) and packed.dtype == dtype
        expected = pack_features_reference(features, grain, order, shape[-1], reduction == "mean", total)
        assert torch.equal(packed, expected)  # to the bit: cells are added in one order everywhere


def test_by_hand(route):
    grain = torch.tensor([[[1, 0]]], device=route)
    features = torch.tensor([[[[1.0, 2, 3, 4], [5, 6, 7, 9]]]], device=route)
    assert pack_features(features, grain)[:, 0].tolist() == [5.75, 1, 2, 5, 6]
    assert pack_features(features, grain, reduction="sum")[:, 0].tolist() == [23, 1, 2, 5, 6]


def test_low_precision_adds_in_float32(route):
    # In float16 alone 2048 + 1 is 2048, and sixteen such sums lose all the ones.
    cells = torch.ones(1, 8, 4, 4, device=route, dtype=torch.float16)
    cells[:, :, 0, 0] = 2048
    packed = pack_features(cells, torch.zeros(1, 1, 1, dtype=torch.int64, device=route), reduction="sum")
    assert packed.tolist() == [[2064.0] * 8]  # 2063 exactly, and the nearest float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_low_precision_value(route, dtype):
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).to(route)
    grain = torch.zeros(1, 1, 1, dtype=torch.int64, device=route)
    kept = pack_features(values.view(1, -1, 1, 1), grain)[0]
    assert torch.equal(kept.nan_to_num(), values.nan_to_num()) and torch.equal(kept.isnan(), values.isnan())
    pairs = torch.zeros(1, 2**16, 2, 2, dtype=dtype, device=route)
    pairs[0, :, 0, 0], pairs[0, :, 0, 1] = values, values.roll(12345)
    sums = pack_features(pairs, grain, reduction="sum")[0]
    expected = (values.float() + values.roll(12345).float()).to(dtype)
    assert torch.equal(sums.nan_to_num(), expected.nan_to_num()) and torch.equal(sums.isnan(), expected.isnan())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("memory", FORMATS)
def test_gradients_match_reference(route, reduction, memory):
    features, grain = inputs(2, 20, 3, 4, 3, route)
    features = features.contiguous(memory_format=FORMATS[memory])
    total, grads = count_codes(grain), []
    weights = torch.randn(total, 20, device=route)
    for run in (
        lambda x: pack_features(x, grain, reduction=reduction),
        lambda x: pack_features_reference(x, grain, "row-first", 3, reduction == "mean", total),
    ):
        leaf = features.clone().requires_grad_()
        (run(leaf) * weights).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
    assert grads[0].is_contiguous(memory_format=FORMATS[memory])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck(reduction):
    features, grain = inputs(2, 2, 1, 2, 3, dtype=torch.float64)

    def run(x):
        return pack_features(x, grain, order="region-first", reduction=reduction)

    assert torch.autograd.gradcheck(run, features.requires_grad_())
    assert torch.autograd.gradgradcheck(run, features)


def test_undoes_expanding(route):
    features, grain = inputs(2, 8, 3, 4, 3, route)
    packed = pack_features(features, grain).bfloat16().float()  # sixteen times such a value is exact in float32
    assert torch.equal(pack_features(expand_features(packed, grain, num_granularities=3), grain), packed)


@pytest.mark.parametrize("memory", FORMATS)
def test_batch_equals_images(route, memory):
    features, grain = inputs(4, 33, 3, 4, 2, route, torch.bfloat16)
    features = features.contiguous(memory_format=FORMATS[memory])
    alone = [pack_features(features[i : i + 1], grain[i : i + 1]) for i in range(4)]
    assert torch.equal(torch.cat(alone), pack_features(features, grain))


@pytest.mark.parametrize("memory", FORMATS)
def test_threads_and_runs_change_nothing(memory):
    features, grain = inputs(48, 64, 16, 16, 2)
    features = features.contiguous(memory_format=FORMATS[memory])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = pack_features(features, grain)
        torch.set_num_threads(7)
        assert all(torch.equal(pack_features(features, grain), alone) for _ in range(3))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mean", [True, False])
def test_opcheck(mean):
    features, grain = inputs(2, 3, 2, 3, 2)
    args = (features.requires_grad_(), grain, "row-first", 2, mean, count_codes(grain))
    torch.library.opcheck(torch.ops.dqcore.pack_features.default, args)


def test_compiles():
    features, grain = inputs(2, 3, 2, 3, 2)
    features.requires_grad_()
    total = count_codes(grain)
    compiled = torch.compile(pack_features, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(features, grain, total=total), pack_features(features, grain))


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (torch.zeros(2, 2), {}, "features: expected 4 dimensions"),
        (torch.zeros(1, 1, 2, 2).long(), {}, "features: expected float16"),
        (torch.zeros(1, 1, 2, 3), {}, "features: expected 1 images of 2 x 2 cells"),
        (torch.zeros(1, 1, 2, 2), {"num_granularities": 3}, "features: expected 1 images of 4 x 4 cells"),
        (torch.zeros(1, 1, 2, 2), {"reduction": "max"}, "reduction: expected 'mean' or 'sum', got 'max'"),
        (torch.zeros(1, 1, 2, 2), {"order": "raster"}, "order: expected"),
        (torch.zeros(1, 1, 2, 2), {"total": 3}, "total: expected 1 codes, as grain asks for, got 3"),
        (torch.zeros(1, 1, 2, 2, device="meta"), {}, "expected one device"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_invalid_input(features, options, message, backend):
    with dqcore.backend(backend), pytest.raises((TypeError, ValueError), match=message):
        pack_features(features, torch.zeros(1, 1, 1, dtype=torch.int64), **options)
