"""What the demo shows of its prior."""

import torch

import dqcore
from dqcore.cli.demo.galleries import upper_half
from dqcore.inference.sample import preview_maps


def test_upper_half_keeps_the_codes_of_the_upper_regions():
    grain = torch.randint(0, 2, (3, 4, 2))
    codes = torch.randint(0, 9, (3, 4, 2)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    maps = preview_maps(upper_half(dqcore.pack_codes(codes, grain, num_granularities=2)), 9)
    assert torch.equal(maps[:, :4], codes[:, :4])
    assert bool((maps[:, 4:] == 9).all())
