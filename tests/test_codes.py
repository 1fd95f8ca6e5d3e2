import copy
import dataclasses

import numpy as np
import pytest
import torch

from dqcore.codes import CodeSequence
from dqcore.ops import pack_codes


def sequence(images: int = 3) -> CodeSequence:
    gen = torch.Generator().manual_seed(images)
    grain = torch.randint(0, 2, (images, 2, 3), generator=gen)
    return pack_codes(torch.randint(0, 9, (images, 4, 6), generator=gen), grain)


def fields(**changes) -> dict:
    ones = torch.zeros(1, dtype=torch.int64)
    values = dict(codes=ones, positions=ones, grains=ones, cu_seqlens=torch.tensor([0, 1], dtype=torch.int32))
    return values | dict(region_grid=(1, 1), num_granularities=1) | changes


def test_counts_images_and_codes():
    seq = sequence()
    assert len(seq) == 3
    assert seq.lengths.dtype == torch.int32
    assert seq.lengths.tolist() == [int(seq.cu_seqlens[i + 1] - seq.cu_seqlens[i]) for i in range(3)]
    assert len(sequence(0)) == 0 and sequence(0).lengths.tolist() == []


def test_slices_by_image():
    seq = sequence(4)
    ends = seq.cu_seqlens.tolist()
    part = seq[1:3]
    assert len(part) == 2
    assert part.codes.tolist() == seq.codes[ends[1] : ends[3]].tolist()
    assert part.cu_seqlens.tolist() == [0, ends[2] - ends[1], ends[3] - ends[1]]
    assert part[1] == seq[2] == seq[-2]
    assert seq[:] == seq
    assert len(seq[3:1]) == len(seq[4:]) == 0
    assert [image.codes.tolist() for image in seq] == [seq[i].codes.tolist() for i in range(4)]
    assert (part.region_grid, part.num_granularities, part.order) == ((2, 3), 2, "row-first")


def test_bad_indices():
    seq = sequence()
    for index in (3, -4):
        with pytest.raises(IndexError, match="images: expected an index of 3"):
            seq[index]
    for wrong in ([0, 2], torch.tensor([0, 2]), 1.0, "0"):
        with pytest.raises(TypeError, match="images: expected an index or a slice, got "):
            seq[wrong]
    with pytest.raises(ValueError, match="images: expected a slice of step 1"):
        seq[::-1]


def test_a_file_of_torch_save_is_read_and_checked(tmp_path):
    """Without ``weights_only=False``, which would let a file run code."""
    seq, file = sequence(), tmp_path / "codes.pt"
    torch.save({"train": seq}, file)
    assert torch.load(file)["train"] == seq
    broken = copy.deepcopy(seq)
    broken.positions[0] = 10**6
    torch.save(broken, file)
    with pytest.raises(ValueError, match="positions: expected"):
        torch.load(file)


def test_equality_looks_at_everything():
    seq = sequence()
    assert seq == copy.deepcopy(seq)
    assert seq != "sequence"
    for change in (
        {"codes": seq.codes + 1},
        {"positions": torch.zeros_like(seq.positions)},
        {"cu_seqlens": torch.tensor([0, 0, 0, len(seq.codes)], dtype=torch.int32)},
        {"num_granularities": 3},
        {"region_grid": (6, 1)},
        {"order": "region-first"},
    ):
        assert dataclasses.replace(seq, **change) != seq, change
    with pytest.raises(TypeError):
        hash(seq)


def test_frozen_and_readable():
    seq = sequence()
    with pytest.raises(dataclasses.FrozenInstanceError):
        seq.order = "region-first"
    assert repr(seq) == (
        f"CodeSequence({len(seq.codes)} codes of 3 images, regions by granularity 44 % / 56 %, region_grid=(2, 3), "
        "num_granularities=2, order='row-first', device='cpu')"
    )
    assert " of 1 image, " in repr(seq[0])


def test_region_grids_are_plain_whole_numbers():
    """Whoever writes a sequence's grid as JSON may have it from NumPy."""
    grid = CodeSequence(**fields(region_grid=np.array([1, 1]))).region_grid
    assert grid == (1, 1) and [type(side) for side in grid] == [int, int]


def test_to_device():
    seq = sequence()
    assert seq.to("cpu") is seq
    moved = seq.to("meta")
    assert moved.device.type == "meta"
    assert {moved.positions.device, moved.grains.device, moved.cu_seqlens.device} == {moved.device}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": [0]}, "codes: expected a tensor of torch.int64, got list"),
        ({"grains": torch.zeros(1)}, "grains: expected a tensor of torch.int64, got torch.float32"),
        ({"cu_seqlens": torch.tensor([0, 1])}, "cu_seqlens: expected a tensor of torch.int32"),
        ({"positions": torch.zeros(2, dtype=torch.int64)}, "positions: expected one dimension, as long as codes"),
        ({"positions": torch.zeros(1, dtype=torch.int64, device="meta")}, "positions: expected device cpu"),
        ({"cu_seqlens": torch.tensor([0, 2], dtype=torch.int32)}, "cu_seqlens: expected to ascend from 0 to 1"),
        ({"cu_seqlens": torch.tensor([0, 2, 1], dtype=torch.int32)}, "cu_seqlens: expected to ascend"),
        ({"cu_seqlens": torch.tensor([], dtype=torch.int32)}, "cu_seqlens: expected to ascend"),
        ({"grains": torch.tensor([1])}, r"grains: expected values in \[0, 1\), got \[1, 1\]"),
        ({"grains": torch.tensor([-1])}, "grains: expected values"),
        ({"positions": torch.tensor([1])}, r"positions: expected values in \[0, 1 \* 4\*\*g\)"),
        ({"positions": torch.tensor([-1])}, "positions: expected values"),
        (
            {"positions": torch.tensor([4]), "grains": torch.tensor([1]), "num_granularities": 2},
            r"positions: expected values in \[0, 1 \* 4\*\*g\)",
        ),
        ({"region_grid": (0, 1)}, "region_grid: expected at least one region"),
        ({"num_granularities": 0}, "num_granularities: expected at least 1"),
        ({"order": "raster"}, "order: expected 'row-first' or 'region-first', got 'raster'"),
    ],
)
def test_invalid_fields(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        CodeSequence(**fields(**changes))
    CodeSequence(**fields())


@pytest.mark.parametrize("order", ["row-first", "region-first"])
def test_the_codes_of_some_regions(order):
    """Against the maps: a code map that is a hole wherever the mask is false."""
    grain = torch.randint(3, (2, 3, 5))
    scale = grain.repeat_interleave(4, 1).repeat_interleave(4, 2)
    span = 4 >> scale
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(20), indexing="ij")
    codes = (rows // span * 20 + columns // span) * 3 + scale
    whole = pack_codes(codes, grain, order=order, num_granularities=3)
    masks = torch.rand(2, 3, 5) < 0.5
    part = whole.where(masks)
    assert int(part.lengths.sum()) == int((4**grain)[masks].sum()) and part.order == order
    for image in range(2):
        mine, all_codes = part[image], whole[image]
        inside = torch.stack([grain[image], torch.arange(15).view(3, 5)])[1][masks[image]].tolist()
        width = 5 << all_codes.grains
        region = (all_codes.positions // width >> all_codes.grains) * 5 + (
            all_codes.positions % width >> all_codes.grains
        )
        keep = torch.isin(region, torch.tensor(inside))
        assert torch.equal(mine.codes, all_codes.codes[keep]) and torch.equal(mine.positions, all_codes.positions[keep])
    assert whole.where(torch.ones(3, 5, dtype=torch.bool)) == whole
    assert whole.where(masks[0])[1] == whole[1].where(masks[0])


def test_masks_that_do_not_fit():
    whole = pack_codes(torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1, 2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"mask: expected a tensor of torch\.bool, got torch\.int64"):
        whole.where(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"mask: expected the shape \(2, 2\) or \(1, 2, 2\), got \(2, 3\)"):
        whole.where(torch.ones(2, 3, dtype=torch.bool))


def test_a_copy_to_the_cpu_is_waited_for(monkeypatch):
    """Its values are checked at once; what a GPU copies without waiting is not there yet."""
    seen, empty = [], torch.zeros(0, dtype=torch.int64, device="meta")
    away = CodeSequence(empty, empty, empty, torch.zeros(2, dtype=torch.int32, device="meta"), (1, 1), 1)

    def to(tensor, device, non_blocking=False):
        seen.append((device, non_blocking))
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(torch.Tensor, "to", to)
    assert away.to("cpu", non_blocking=True).device.type == "cpu"
    assert seen == [("cpu", False)] * 4
