from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import dqcore
from dqcore.ops import pack_codes, unpack_codes
from dqcore.ops.layout import count_codes
from dqcore.ops.reference.pack_codes import pack_codes_reference

ORDERS = ["row-first", "region-first"]
SHAPES = [(0, 2, 2, 2), (1, 1, 1, 1), (3, 5, 7, 1), (4, 3, 5, 2), (2, 4, 3, 3), (2, 1, 33, 4)]  # B, h, w, G
GOLDEN = load_file(Path(__file__).parents[1] / "fixtures" / "sequences.safetensors")


def maps(images: int, rows: int, columns: int, num_granularities: int, device: str = "cpu"):
    """Random codes and granularities; codes differ within blocks, of which the top-left cell counts."""
    cells = (images, rows << (num_granularities - 1), columns << (num_granularities - 1))
    grain = torch.randint(0, num_granularities, (images, rows, columns), device=device)
    return torch.randint(0, 512, cells, device=device), grain


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_matches_reference(route, shape, order):
    codes, grain = maps(*shape, route)
    codes, grain = codes.mT.contiguous().mT, grain.mT.contiguous().mT  # not contiguous
    seq = pack_codes(codes, grain, order, shape[-1])
    expected = pack_codes_reference(codes, grain, order, shape[-1], count_codes(grain))
    for actual, wanted in zip((seq.codes, seq.positions, seq.grains, seq.cu_seqlens), expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert torch.equal(actual, wanted)
    assert (seq.region_grid, seq.num_granularities, seq.order) == (shape[1:3], shape[-1], order)


@pytest.mark.parametrize("order", ORDERS)
def test_order_by_hand(route, order):
    grain = torch.tensor([[[1, 0], [1, 1]]], device=route)
    codes = torch.arange(16, device=route).view(1, 4, 4)
    seq = pack_codes(codes, grain, order)
    fine = [0, 1, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15]
    if order == "region-first":
        fine = [0, 1, 4, 5, 8, 9, 12, 13, 10, 11, 14, 15]
    assert seq.positions.tolist() == [1, *fine]
    assert seq.codes.tolist() == [2, *fine]
    assert seq.grains.tolist() == [0] + [1] * 12


@pytest.mark.parametrize("order", ORDERS)
def test_matches_the_recorded_sequences(route, order):
    recorded = {key.split(".")[1]: value for key, value in GOLDEN.items() if key.startswith(order.replace("-", "_"))}
    seq = pack_codes(recorded["codes"].long().to(route), recorded["grain"].long().to(route), order)
    assert len(seq) == 5
    for index, image in enumerate(seq):
        for grain, part in enumerate(["coarse", "fine"]):
            content, position = (recorded[f"{part}_{what}"][index].tolist() for what in ("content", "position"))
            end = content.index(513)  # eos; then pads
            mine = image.grains == grain
            assert image.codes[mine].tolist() == content[:end]
            assert image.positions[mine].tolist() == position[:end]
        assert image.grains.tolist() == sorted(image.grains.tolist())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4)),
    order=st.sampled_from(ORDERS),
    backend=st.sampled_from(["auto", "reference"]),
    seed=st.integers(0, 2**16),
)
def test_round_trip(shape, order, backend, seed):
    torch.manual_seed(seed)
    with dqcore.backend(backend):
        seq = pack_codes(*maps(*shape), order, shape[-1])
        codes, grain = unpack_codes(seq)
        assert pack_codes(codes, grain, order, shape[-1]) == seq
        again = unpack_codes(pack_codes(codes, grain, order, shape[-1]))
    assert torch.equal(again[0], codes) and torch.equal(again[1], grain)


@pytest.mark.parametrize("order", ORDERS)
def test_batch_equals_images(route, order):
    codes, grain = maps(4, 3, 5, 3, route)
    for index, image in enumerate(pack_codes(codes, grain, order)):
        assert image == pack_codes(codes[index : index + 1], grain[index : index + 1], order)


def test_threads_change_nothing():
    codes, grain = maps(64, 64, 64, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = pack_codes(codes, grain)
        unpacked = unpack_codes(alone)
        torch.set_num_threads(5)
        assert pack_codes(codes, grain) == alone
        assert all(torch.equal(*pair) for pair in zip(unpack_codes(alone), unpacked, strict=True))
    finally:
        torch.set_num_threads(before)


def test_opcheck():
    codes, grain = maps(2, 3, 2, 2)
    torch.library.opcheck(torch.ops.dqcore.pack_codes.default, (codes, grain, "row-first", 2, count_codes(grain)))


def test_compiles():
    codes, grain = maps(2, 3, 2, 2)
    compiled = torch.compile(torch.ops.dqcore.pack_codes, fullgraph=True, backend="aot_eager")
    total = count_codes(grain)
    assert torch.equal(compiled(codes, grain, "row-first", 2, total)[0], pack_codes(codes, grain).codes)


@pytest.mark.parametrize(
    ("codes", "grain", "options", "message"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 1, 1).long(), {}, "codes: expected int64"),
        (torch.zeros(2, 2).long(), torch.zeros(1, 1, 1).long(), {}, "codes: expected 3 dimensions"),
        (torch.zeros(1, 2, 2).long(), torch.zeros(1, 1, 1), {}, "grain: expected int64"),
        (torch.zeros(1, 3, 3).long(), torch.zeros(1, 1, 1).long(), {}, "codes: expected 1 images of 4 x 4 cells"),
        (torch.zeros(2, 2, 2).long(), torch.zeros(1, 1, 1).long(), {}, "codes: expected 1 images"),
        (torch.zeros(1, 2, 2).long(), torch.full((1, 1, 1), 2), {}, r"grain: expected values in \[0, 2\)"),
        (torch.zeros(1, 2, 2).long(), torch.full((1, 1, 1), -1), {}, "grain: expected values"),
        (torch.zeros(1, 0, 2).long(), torch.zeros(1, 0, 1).long(), {}, "grain: expected at least one region"),
        (torch.zeros(1, 2, 2).long(), torch.zeros(1, 1, 1).long(), {"num_granularities": 1}, "codes: expected 1"),
        (torch.zeros(1, 2, 2).long(), torch.zeros(1, 1, 1).long(), {"num_granularities": 0}, "num_granularities:"),
        (torch.zeros(1, 2, 2).long(), torch.zeros(1, 1, 1).long(), {"order": "raster"}, "order: expected"),
        (torch.zeros(1, 2, 2).long(), torch.zeros(1, 1, 1, device="meta").long(), {}, "expected one device"),
    ],
)
def test_invalid_input(codes, grain, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pack_codes(codes, grain, **options)


def test_wrong_total(route):
    codes, grain = maps(1, 2, 2, 2)
    with pytest.raises(ValueError, match=f"total: expected {count_codes(grain)} codes"):
        torch.ops.dqcore.pack_codes(codes, grain, "row-first", 2, 99)
