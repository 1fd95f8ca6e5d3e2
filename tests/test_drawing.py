"""How results show themselves: a line that never fails, and small pictures for a notebook."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

import dqcore
from dqcore.drawing import bars, code_picture, grain_picture, granularity_colour, line, percentages
from dqcore.models.tokenizers import Encoding, TokenizerOutput
from dqcore.nn.quantized import Quantized


def encoding():
    grain = torch.tensor([[[0, 1], [1, 0]], [[0, 0], [0, 0]]])
    codes = torch.tensor([[7, 7, 1, 2], [7, 7, 3, 4], [5, 6, 9, 9], [8, 1, 9, 9]])
    codes = torch.stack([codes, torch.full_like(codes, 3)])
    return Encoding(codes, grain, torch.zeros(2, 8, 4, 4))


def pictures(shown):
    """The pictures in the HTML that an object shows itself with."""
    found = re.findall(r"data:image/png;base64,([^\"]+)", shown)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_results_are_a_line_each():
    assert repr(encoding()) == (
        "Encoding(14 codes in 2 images, regions by granularity 75 % / 25 %, codes=int64 (2, 4, 4) with 9 different, "
        "grain=int64 (2, 2, 2), quantized=float32 (2, 8, 4, 4))"
    )
    quantized = Quantized(torch.zeros(1, 2, 3), torch.tensor([[4, -1, 4]]), torch.tensor(0.25))
    assert repr(quantized) == "Quantized(map=float32 (1, 2, 3), codes=int64 (1, 3) with 1 different, loss=0.25)"
    assert line("X", a=None, b=torch.zeros(2, device="meta")) == "X(b=float32 (2,) on meta)"


def test_a_code_sequence_says_how_its_regions_are_covered():
    found = encoding()
    sequence = dqcore.pack_codes(found.codes, found.grain)
    assert "14 codes of 2 images, regions by granularity 75 % / 25 %, region_grid=(2, 2)" in repr(sequence)
    part = sequence.where(torch.tensor([[True, False], [False, False]]))
    assert "2 codes of 2 images, regions by granularity 25 % / 0 %, 75 % without codes" in repr(part)


def test_values_that_cannot_be_read_leave_the_shapes():
    fields = [torch.zeros(shape, device="meta", dtype=torch.int64) for shape in ((1, 4, 4), (1, 2, 2))]
    assert repr(Encoding(*fields, fields[0])).startswith("Encoding(codes=int64 (1, 4, 4) on meta, grain=")
    assert Encoding(*fields, fields[0])._repr_html_() is None
    with FakeTensorMode():
        fake = Quantized(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(()))
        assert repr(fake) == "Quantized(map=float32 (1, 2, 2, 2), codes=int64 (1, 2, 2), loss=float32 ())"
    said = []
    torch.vmap(lambda codes: said.append(repr(Quantized(codes, codes, codes))) or codes)(torch.zeros(2, 3).long())
    assert said == ["Quantized(map=int64 (3,), codes=int64 (3,), loss=int64 (3,))"]
    assert repr(Quantized("a", None, 1.0)) == "Quantized(map=a, codes=None, loss=1.0)"


def test_a_sequence_and_an_encoding_show_the_same_pictures():
    found = encoding()
    shown = pictures(found._repr_html_())
    assert len(shown) == 4  # of each image the granularities and the codes
    for mine, other in zip(shown, pictures(dqcore.pack_codes(found.codes, found.grain)._repr_html_()), strict=True):
        assert np.array_equal(mine, other)
    assert shown[0].shape == (64, 64, 3)  # 16 pixels a cell
    inside = [tuple(int(value) for value in shown[0][y, x]) for y, x in ((8, 8), (8, 56))]
    assert inside == [granularity_colour(0, 2), granularity_colour(1, 2)]
    codes = shown[1]
    assert np.array_equal(codes[20, 20], codes[10, 10])  # a coarse code fills its block
    assert not np.array_equal(codes[8, 40], codes[8, 56])
    assert codes[8, 48].sum() < codes[8, 56].sum() and np.array_equal(codes[8, 16], codes[8, 20])  # edges of codes


def test_regions_without_codes_are_grey():
    found = encoding()
    part = dqcore.pack_codes(found.codes, found.grain).where(torch.tensor([[True, False], [False, False]]))
    shown = pictures(part._repr_html_())
    assert len(shown) == 4  # the maps of codes and of granularities of two images
    for picture in shown:
        assert picture[-2, -2].tolist() == [222, 222, 222] and picture[8, 8].tolist() != [222, 222, 222]


def test_a_reconstruction_is_shown():
    found = encoding()
    image = torch.linspace(-2, 2, 3 * 8 * 8).view(1, 3, 8, 8).expand(2, -1, -1, -1)
    output = TokenizerOutput(image, torch.tensor(0.1), torch.tensor(0.0), found.codes, found.grain)
    picture = pictures(output._repr_html_())[0]
    assert picture.shape == (8, 8, 3) and picture[0, 0, 0] == 0 and picture[-1, -1, 2] == 255
    assert "commitment_loss=0.1, budget_loss=0" in repr(output)


@pytest.mark.parametrize("side", [1, 20, 300])
def test_pictures_stay_small(side):
    picture = code_picture(np.arange(side * side).reshape(side, side))
    assert side <= picture.shape[0] <= max(160, side)
    assert grain_picture(np.zeros((side, 2), dtype=int), 3).dtype == np.uint8


def test_bars_are_as_tall_as_their_values():
    tall = [float(height) for height in re.findall(r'height="([\d.]+)"', bars([1, 4, 2], ["a<b", "c", "d"]))]
    assert tall == [60, 15, 60, 30] and "a&lt;b" in bars([1], ["a<b"])
    assert bars([]).startswith("<svg") and percentages([1, 3], 4) == "25 % / 75 %"


def test_a_quantizer_shows_how_often_its_codes_are_chosen():
    quantizer = dqcore.DynamicQuantizer(4, 100)
    quantizer.codebook.idle[:50] = 1000
    shown = quantizer._repr_html_()
    assert shown.count("<rect") == 50 and "50 % of the codes" in shown
