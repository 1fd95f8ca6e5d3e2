"""A fixture for the ops that draw."""

import pytest
import torch

from dqcore import backends


@pytest.fixture
def blocks(request: pytest.FixtureRequest, route: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The route of kernels, on which all rows are too long for registers: a program holds a few logits of one."""
    if backends.route(torch.device(route)) != "gpu":
        pytest.skip("PyTorch's operations know no blocks")
    from dqcore.kernels import draw

    for name, value in (("LONGEST", 0), ("LONG_BLOCK", request.module.BLOCK), ("LONG_WARPS", 1)):
        monkeypatch.setattr(draw, name, value)
    return route
