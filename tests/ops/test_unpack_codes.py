import dataclasses
import itertools
import sys

import pytest
import torch

import dqcore
from dqcore import backends
from dqcore.codes import CodeSequence
from dqcore.ops import pack_codes, unpack_codes
from dqcore.ops.reference.unpack_codes import unpack_codes_reference

SHAPES = [(0, 2, 2, 2), (1, 1, 1, 1), (3, 5, 7, 1), (4, 3, 5, 2), (2, 4, 3, 3), (2, 1, 33, 4)]  # B, h, w, G


def sequence(images: int, rows: int, columns: int, num_granularities: int, device: str = "cpu") -> CodeSequence:
    cells = (images, rows << (num_granularities - 1), columns << (num_granularities - 1))
    grain = torch.randint(0, num_granularities, (images, rows, columns), device=device)
    return pack_codes(torch.randint(-9, 512, cells, device=device), grain, num_granularities=num_granularities)


def arguments(seq: CodeSequence) -> tuple:
    return (seq.codes, seq.positions, seq.grains, seq.cu_seqlens, *seq.region_grid, seq.num_granularities)


def of_one_image(codes, positions, grains, region_grid=(1, 2), num_granularities=2) -> CodeSequence:
    tensors = (torch.tensor(values, dtype=torch.int64) for values in (codes, positions, grains))
    ends = torch.tensor([0, len(codes)], dtype=torch.int32)
    return CodeSequence(*tensors, ends, region_grid, num_granularities)


def shuffled(seq: CodeSequence) -> CodeSequence:
    """The codes of each image in another order."""
    ends = seq.cu_seqlens.tolist()
    parts = [low + torch.randperm(high - low) for low, high in itertools.pairwise(ends)]
    order = torch.cat([torch.zeros(0, dtype=torch.int64), *parts]).to(seq.device)
    return dataclasses.replace(seq, codes=seq.codes[order], positions=seq.positions[order], grains=seq.grains[order])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(route, shape):
    seq = shuffled(sequence(*shape, route))
    strided = dataclasses.replace(seq, codes=torch.stack([seq.codes, seq.codes], 1)[:, 0])
    code_map, grain_map = unpack_codes(strided)
    expected = unpack_codes_reference(*arguments(seq))
    assert torch.equal(code_map, expected[0]) and torch.equal(grain_map, expected[1])
    assert code_map.dtype == grain_map.dtype == torch.int64


def test_by_hand(route):
    seq = of_one_image([7, 1, 2, 3, 4], [1, 0, 1, 4, 5], [0, 1, 1, 1, 1]).to(route)
    code_map, grain_map = unpack_codes(seq)
    assert code_map.tolist() == [[[1, 2, 7, 7], [3, 4, 7, 7]]]
    assert grain_map.tolist() == [[[1, 0]]]


def test_batch_equals_images(route):
    seq = sequence(5, 3, 4, 3, route)
    code_map, grain_map = unpack_codes(seq)
    for index, image in enumerate(seq):
        alone = unpack_codes(image)
        assert torch.equal(alone[0][0], code_map[index]) and torch.equal(alone[1][0], grain_map[index])


@pytest.mark.skipif(backends.extension() is None, reason="dqcore._C was not built")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_only_sequences_with_a_mistake_are_read_twice(shape, monkeypatch):
    """What the extension refuses, the reference unpacks, which takes much longer."""
    monkeypatch.setattr(sys.modules["dqcore.ops.unpack_codes"], "unpack_codes_reference", None)
    seq = sequence(*shape)
    code_map, grain_map = unpack_codes(seq)
    assert pack_codes(code_map, grain_map, num_granularities=shape[-1]) == seq


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("positions", "grains"),
    [
        ([0], [0]),  # the second region is missing
        ([0, 0], [0, 0]),  # the first one twice
        ([0, 1, 1], [0, 0, 0]),
        ([0, 2, 3, 6], [0, 1, 1, 1]),  # a cell is missing
        ([0, 2, 3, 6, 6], [0, 1, 1, 1, 1]),  # and one is there twice
        ([0, 1, 2, 3, 6, 7], [0, 0, 1, 1, 1, 1]),  # the second region is both coarse and fine
        ([], []),
    ],
    ids=str,
)
def test_uneven_cover_is_an_error(backend, positions, grains):
    whole = of_one_image([5, 6], [0, 1], [0, 0])
    broken = of_one_image([8] * len(positions), positions, grains)
    ends = torch.tensor([0, 2, 2 + len(positions)], dtype=torch.int32)
    both = CodeSequence(
        *(torch.cat([getattr(seq, name) for seq in (whole, broken)]) for name in ("codes", "positions", "grains")),
        ends,
        (1, 2),
        2,
    )
    with (
        dqcore.backend(backend),
        pytest.raises(ValueError, match="sequence: expected each region covered exactly once, image 1"),
    ):
        unpack_codes(both)


def test_mixed_fine_granularities_are_an_error(route):
    grains = [1, 1, 1] + [2] * 4
    seq = of_one_image(range(7), [0, 1, 2, 10, 11, 14, 15], grains, region_grid=(1, 1), num_granularities=3)
    with pytest.raises(ValueError, match=r"covered exactly once, image 0 differs$"):
        unpack_codes(seq)


def test_a_partial_sequence_is_told_who_completes_it(route):
    seq = of_one_image(range(2), [0, 1], [0, 0], region_grid=(2, 2), num_granularities=1)
    with pytest.raises(ValueError, match="covered exactly once, image 0 differs; what is partial a prior completes"):
        unpack_codes(seq)


@pytest.mark.parametrize(("name", "value"), [("positions", 99), ("positions", -1), ("grains", 2), ("grains", -1)])
def test_values_out_of_range_never_leave_the_maps(route, name, value):
    seq = sequence(1, 2, 2, 2)
    getattr(seq, name)[-1] = value  # after the constructor has looked
    with pytest.raises((ValueError, IndexError)):
        unpack_codes(seq)


def test_opcheck():
    torch.library.opcheck(torch.ops.dqcore.unpack_codes.default, arguments(sequence(2, 2, 3, 3)))


def test_compiles():
    seq = sequence(2, 3, 2, 2)
    compiled = torch.compile(torch.ops.dqcore.unpack_codes, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments(seq))[0], unpack_codes(seq)[0])


def test_invalid_input():
    with pytest.raises(TypeError, match="sequence: expected a CodeSequence, got tuple"):
        unpack_codes((torch.zeros(1), torch.zeros(1)))
