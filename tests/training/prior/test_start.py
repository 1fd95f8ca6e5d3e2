"""Initial embeddings after the codebook and the places of positions."""

import pytest
import torch

from dqcore.models.auto import PRIORS, kind_of_preset
from dqcore.training.prior.start import SCALE, _turned, start_from_codes

DESIGNS = ("dqtransformer", "raster-dynamic", "global-local", "raster")


def cosines(vectors):
    return torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)


@pytest.mark.parametrize("design", DESIGNS)
def test_alike_codes_and_near_places_have_alike_embeddings(design):
    torch.manual_seed(0)
    preset = f"{design}-tiny"
    model = kind_of_preset(preset, PRIORS, "prior").from_preset(preset, codebook_size=30)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    codes = torch.randn(30, 8)
    codes[7] = codes[3] + 0.01
    start_from_codes(model, codes)
    for weight in (model.content_embedding.weight, model.content_head[1].weight):
        near = cosines(weight[:30].detach())
        assert near[3, 7] > 0.99 and near[3, 4] < 0.9
        assert float(weight[:30].detach().square().mean().sqrt()) == pytest.approx(SCALE, rel=0.01)
        torch.testing.assert_close(near, cosines(codes - codes.mean(0)), atol=1e-4, rtol=0)
    special = before["content_embedding.weight"][30:]
    assert special.equal(model.content_embedding.weight[30:])
    if "position_embedding.weight" not in before:
        return
    tape, weight = model.tape, model.position_embedding.weight.detach()
    changed = (weight != before["position_embedding.weight"]).any(1)
    assert changed.nonzero()[:, 0].equal(tape.rows[tape.lookup].unique())
    width = model.config.region_grid[1]
    finest = int(tape.grains.max())
    entries = tape.lookup[(tape.grains[tape.lookup] == finest)]
    row_of = dict(zip(tape.positions[entries].tolist(), tape.rows[entries].tolist(), strict=True))
    columns = width << finest
    below, far = columns, 5 * columns + 7
    near = cosines(weight[[row_of[0], row_of[1], row_of[below], row_of[far]]])[0]
    assert near[1] > near[3] and near[2] > near[3]


@pytest.mark.parametrize("size, dim", ((8, 32), (32, 32), (64, 16)))
def test_turned_features_keep_their_scale_and_their_angles(size, dim):
    features = torch.randn(4000, size)
    turned = _turned(features, dim, torch.Generator().manual_seed(0))
    assert turned.shape == (4000, dim)
    assert float(turned.square().mean().sqrt()) == pytest.approx(SCALE, rel=0.02)
    if size <= dim:
        torch.testing.assert_close(cosines(turned[:50]), cosines(features[:50]), atol=1e-4, rtol=0)
