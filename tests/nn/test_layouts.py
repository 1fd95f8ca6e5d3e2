import pytest
import torch

from dqcore.nn.layouts import layout_of, pyramid


def test_a_map_of_a_pyramid_is_the_mean_of_blocks():
    x = torch.randn(2, 3, 8, 4)
    maps = pyramid(x, 3)
    assert [values.shape[2:] for values in maps] == [(2, 1), (4, 2), (8, 4)]
    for side, values in zip((4, 2, 1), maps, strict=True):
        torch.testing.assert_close(values, x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).mean((3, 5)))


@pytest.mark.parametrize(
    ("shape", "channel_last"), [((2, 3, 4, 5), False), ((2, 4, 5, 3), True), ((2, 7, 3), True)], ids=str
)
def test_restore_inverts_to_map(shape, channel_last):
    x = torch.randn(shape)
    layout = layout_of(x.dim(), channel_last)
    assert x.shape[layout.channel] == 3
    values = layout.to_map(x)
    assert values.shape[:2] == (2, 3)
    assert torch.equal(layout.restore(values), x)
    assert torch.equal(layout.restore(values[:, 0]), x.select(layout.channel, 0))
