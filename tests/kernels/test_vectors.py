"""The list of a lookup's vectors: every one once, neighbours beside each other, and where each region's are."""

import pytest
import torch

from dqcore import backends

pytest.importorskip("triton")
if not (backends.interpreting() or torch.cuda.is_available()):
    pytest.skip("needs Triton's interpreter or a GPU", allow_module_level=True)

from dqcore.kernels import survey
from dqcore.kernels.codes import Codes
from dqcore.kernels.vectors import Vectors

DEVICE = "cpu" if backends.interpreting() else "cuda"


def listed(grain, levels):
    images, height, width = grain.shape
    maps = [torch.zeros(images, 4, height << g, width << g, dtype=torch.half, device=DEVICE) for g in range(levels)]
    codebook, batch = maps[0].new_zeros(3, 4), Vectors.listed(maps, grain)
    survey.survey(batch, codebook, Codes.empty(codebook, exact=True))
    return batch.cells[: int(batch.number)].tolist(), batch.places


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("regions", [4, 16, 128])
def test_every_vector_is_listed_once(monkeypatch, levels, regions):
    """Whatever part of the regions a program lists."""
    monkeypatch.setattr(survey, "REGIONS", regions)
    grain = torch.randint(-1, levels, (2, 3, 7), device=DEVICE)
    found, (starts, steps) = listed(grain, levels)
    width, expected = 7 << (levels - 1), set()
    for image, line, column in (grain >= 0).nonzero().tolist():
        g = int(grain[image, line, column])
        for y in range(2**g):
            for x in range(2**g):
                row = ((image * 3 + line) << (levels - 1)) + (y << (levels - 1 - g))
                cell = row * width + (column << (levels - 1)) + (x << (levels - 1 - g))
                expected.add(cell * 8 + g)
                place = starts[image, line, column] + y * steps[image, line, column] + x
                assert found[place] == cell * 8 + g
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_neighbours_in_the_list_are_neighbours_in_their_map():
    """A line of regions gives, for each granularity, whole rows of cells from left to right: lanes share sectors."""
    grain = torch.tensor([[[1, 0, 1, 1, 0]]], device=DEVICE)
    found, _ = listed(grain, 2)
    cells = [(value >> 3, value & 7) for value in found]
    assert cells == [(2, 0), (8, 0), *((row * 10 + x, 1) for row in (0, 1) for x in (0, 1, 4, 5, 6, 7))]


@pytest.mark.parametrize("levels", [1, 2])
def test_what_is_known_of_addresses(levels):
    """Rows are read in place, 16 bytes at once if every one begins at a multiple of 16; planes are packed."""
    grain = torch.zeros(1, 2, 2, dtype=torch.int64, device=DEVICE)
    last = torch.channels_last
    maps = [torch.randn(1, 8, 2 << g, 2 << g, device=DEVICE) for g in range(levels)]
    batch = Vectors.listed(maps, grain)
    assert (batch.align, batch.packed, batch.rows.shape) == (0, 4, (4**levels, 8))
    batch = Vectors.listed([values.contiguous(memory_format=last) for values in maps], grain)
    assert (batch.align, batch.packed, batch.rows) == (16, 16, None)
    odd = [torch.randn(1, 2 << g, 2 << g, 9, device=DEVICE)[..., 1:].permute(0, 3, 1, 2) for g in range(levels)]
    assert Vectors.listed(odd, grain).align == 4
