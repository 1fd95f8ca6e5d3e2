"""Ours against diffusers' own class, and in its ``VQModel``."""

import copy

import numpy as np
import pytest
import torch

import dqcore
from dqcore.compat.diffusers import VectorQuantizer

theirs = pytest.importorskip("diffusers.models.autoencoders.vae").VectorQuantizer

CASES = {
    "legacy": {},
    "not_legacy": dict(legacy=False, sane_index_shape=True),
    "remap_random": dict(remap=True),
    "remap_extra": dict(remap=True, unknown_index="extra", sane_index_shape=True),
    "remap_number": dict(remap=True, unknown_index=3),
}


@pytest.fixture(params=CASES)
def pair(request, tmp_path, record_module):
    """Theirs and ours with the same weights."""
    arguments = dict(CASES[request.param])
    if arguments.get("remap"):
        np.save(tmp_path / "used.npy", np.array(record_module.USED))
        arguments["remap"] = tmp_path / "used.npy"
    pair = [cls(record_module.SIZE, record_module.DIM, 0.25, **arguments) for cls in (theirs, VectorQuantizer)]
    pair[0].embedding.weight.data.normal_(std=0.7)
    pair[1].load_state_dict(pair[0].state_dict(), strict=True)
    pair[0].load_state_dict(pair[1].state_dict(), strict=True)
    return pair


def test_does_what_theirs_does(pair, record_module, compare_traces):
    inputs = torch.randn(record_module.STEPS, 2, record_module.DIM, 4, 2)
    expected, ours = (record_module.trace(one, inputs, record_module._map) for one in pair)
    compare_traces(ours, expected)


@pytest.mark.parametrize("offset", [0, 1000])
def test_where_codes_differ_ours_are_nearer(offset, check_nearer):
    peer, ours = theirs(512, 16, 0.25), VectorQuantizer(512, 16, 0.25)
    peer.embedding.weight.data.normal_().add_(offset)
    ours.load_state_dict(peer.state_dict())
    z = torch.randn(4, 16, 16, 16) + offset
    expected, codes = (one(z)[2][2] for one in (peer, ours))
    share = check_nearer(z.permute(0, 2, 3, 1).flatten(0, 2), ours.embedding.weight.detach(), codes, expected)
    assert 0.3 < share < 0.9 if offset else share < 0.002


def test_a_whole_model_trains_as_before():
    torch.manual_seed(0)
    from diffusers import VQModel

    plain = VQModel(
        block_out_channels=(32,), latent_channels=4, num_vq_embeddings=64, norm_num_groups=8, sample_size=16
    )
    plain.quantize.embedding.weight.data.normal_()
    ours = copy.deepcopy(plain)
    assert list(dqcore.replace_quantizers(ours)) == ["quantize"]
    assert type(ours.quantize) is VectorQuantizer
    ours.load_state_dict(plain.state_dict(), strict=True)
    images = torch.rand(20, 2, 3, 16, 16)
    histories = [_train(model, images) for model in (plain, ours)]
    torch.testing.assert_close(histories[1], histories[0], rtol=0, atol=1e-4)
    assert histories[0][-1] < histories[0][0]


def _train(model, images):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for x in images:
        sample, commitment = model(x, return_dict=False)
        loss = (sample - x).square().mean() + commitment.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)
