"""What holds for every registered op."""

import pytest
import torch

from dqcore.ops import dynamic_lookup, nearest_code
from dqcore.ops.reference.nearest_code import nearest_code_reference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_reach_inside(route, dtype):
    """A lookup under autocast is as exact as without: its product stays in float32."""
    x, codebook = torch.randn(1024, 32, device=route), torch.randn(256, 32, device=route)
    expected = nearest_code_reference(x, codebook, "exact")
    maps, grain = [x.T.reshape(1, 32, 32, 32)], torch.zeros(1, 32, 32, dtype=torch.int64, device=route)
    with torch.autocast(torch.device(route).type, dtype):
        assert torch.equal(nearest_code(x, codebook), expected)
        assert torch.equal(dynamic_lookup(maps, grain, codebook).codes.flatten(), expected)
        assert torch.is_autocast_enabled(torch.device(route).type)
