import pytest
import torch

from dqcore.training.tokenizer.pixels import PIXEL_LOSSES

IMAGES = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(("name", "expected"), [("l1", 0.5), ("l2", 1.0), ("colour", 2 / 3)])
def test_an_error_of_grey(name, expected):
    """Half a unit on every channel: luma is off by a half, colour by nothing."""
    assert PIXEL_LOSSES[name](IMAGES, IMAGES + 0.5).item() == pytest.approx(expected, abs=1e-6)


def test_colour_weighs_more_than_in_rgb():
    blue = torch.tensor([0.0, 0.0, 0.5]).view(1, 3, 1, 1)
    grey = torch.full((1, 3, 1, 1), 0.5)
    share = {
        name: (loss(IMAGES, IMAGES + blue) / loss(IMAGES, IMAGES + grey)).item() for name, loss in PIXEL_LOSSES.items()
    }
    assert share["l1"] == share["l2"] == pytest.approx(1 / 3)
    assert share["colour"] == pytest.approx(0.114**2 + 4 * 0.5**2 + 4 * 0.081312**2, rel=1e-4)
