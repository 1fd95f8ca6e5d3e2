import numpy as np
import pytest
import torch

from dqcore.report.page import Gallery, _gallery
from dqcore.report.pictures import error_map, error_scale, grain_layer, grain_overlay, granularity_colour, side_by_side


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_granularity_has_its_colour(count):
    colours = [granularity_colour(g, count) for g in range(count)]
    assert len(set(colours)) == count
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    assert colours[-1] == granularity_colour(1, 2)


def test_overlay_tints_regions_and_draws_their_codes():
    grain = torch.tensor([[0, 1], [2, 0]])
    picture = np.asarray(grain_overlay(torch.zeros(3, 32, 32), grain, 3, scale=2)).astype(int)
    assert picture.shape == (64, 64, 3)
    base = 127.5 * 0.6
    for (row, column), g in np.ndenumerate(grain.numpy()):
        inside = picture[row * 32 + 3, column * 32 + 3]
        expected = base + 0.4 * np.array(granularity_colour(int(g), 3))
        assert np.abs(inside - expected).max() <= 1
        middle = picture[row * 32 + 3, column * 32 : column * 32 + 32].sum(1)
        lines = (middle > middle[3] + 20).sum()
        assert lines == 2**g  # the outline of the region, and the lines between its codes


def test_error_map_grows_brighter():
    image = torch.zeros(3, 4, 8)
    error = torch.linspace(0, 0.6, 8).expand(3, 4, 8)
    brightness = np.asarray(error_map(image, image + error, limit=0.5).convert("L")).astype(int)
    assert (np.diff(brightness[0]) >= 0).all()
    assert brightness[0, 0] < 20
    assert brightness[0, -1] > 220


def test_side_by_side():
    pictures = [error_map(torch.zeros(3, 4, size), torch.zeros(3, 4, size)) for size in (5, 7)]
    assert side_by_side(pictures, gap=3).size == (15, 4)


def test_the_layer_alone_has_the_overlays_tints_and_lines():
    grain = torch.tensor([[0, 1], [2, 0]])
    layer = grain_layer(grain, 3, (32, 26), 16)
    pixels = np.asarray(layer.convert("RGBA")).astype(int)
    assert layer.size == (round(26 * 48 / 16), 96)
    for row, column in ((0, 0), (0, 1), (1, 0)):
        inside = pixels[row * 48 + 5, column * 48 + 5]
        assert tuple(inside[:3]) == granularity_colour(int(grain[row, column]), 3) and inside[3] == 102
        line = pixels[row * 48 + 5, column * 48 : column * 48 + 30]
        assert (line[:, 3] != 102).sum() == len([x for x in range(30) if x % (48 >> int(grain[row, column])) == 0])


def test_the_scale_goes_from_dark_to_bright():
    assert error_scale().startswith("linear-gradient(to right, rgb(8 6 20), ") and error_scale().count("rgb") == 5


def test_pictures_of_several_photos_stand_in_shorter_rows():
    """Eight in a row, those that a training kept were a hundred pixels wide, with twelve pictures in each."""
    for width, broad in ((32, ""), (36, ""), (42, "broad"), (60, "wide")):
        made = _gallery(Gallery("title", "remark", [(torch.zeros(3, 32, width), "caption")]))
        assert made["broad"] == broad
