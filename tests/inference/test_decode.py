"""Code maps with holes: what is missing takes after what surrounds it."""

import pytest
import torch

import dqcore
from dqcore.inference.decode import decode_open

SIZES = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return dqcore.DQVAE.from_preset("dqvae-dual-tiny", **SIZES).eval()


@pytest.mark.parametrize("grid", [(4, 6), (10, 2), (6, 14)], ids=str)
def test_a_hole_among_equal_codes_is_one_of_them(model, grid):
    whole = torch.full((1, *grid), 3)
    holes = whole.clone()
    holes[0, grid[0] // 2 :, grid[1] // 2 :] = 16
    torch.testing.assert_close(decode_open(model, holes), decode_open(model, whole))


def test_a_hole_is_between_its_sides(model, monkeypatch):
    codes, vectors = torch.tensor([[[2] * 2 + [16] * 4 + [5] * 2] * 4]), []
    decode = model.decode_quantized
    monkeypatch.setattr(model, "decode_quantized", lambda quantized: vectors.append(quantized) or decode(quantized))
    decode_open(model, codes)
    left, right = (model.quantizer.embed(torch.tensor([[[code]]]))[0, :, 0, 0] for code in (2, 5))
    share = ((vectors[0][0].movedim(0, -1) - left) @ (right - left) / (right - left).square().sum()).detach()
    torch.testing.assert_close(share[:, [0, 1, 6, 7]], torch.tensor([0.0, 0, 1, 1]).expand(4, -1), atol=1e-5, rtol=0)
    assert (share.diff(dim=1) > -1e-5).all() and share[:, 2:6].mean() == pytest.approx(0.5, abs=1e-5)
