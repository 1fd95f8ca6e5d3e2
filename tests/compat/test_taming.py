"""Ours against what the classes of taming-transformers did, recorded with ``record.py``."""

import numpy as np
import pytest
import torch

import dqcore.compat.taming as ours
from dqcore.errors import InputError

LIBRARY, OURS = "taming", ours


def test_does_what_theirs_did(recorded, check_trace):
    check_trace(recorded)


def test_state_dict_has_the_same_keys(recorded):
    first = [name.removeprefix("first/") for name in recorded.theirs if name.startswith("first/")]
    assert sorted(recorded.quantizer.state_dict()) == sorted(first)


def test_where_codes_differ_ours_are_nearer(recorded, check_far):
    if getattr(recorded.quantizer, "remap", None) is not None:
        pytest.skip("the recorded codes are renumbered")
    share = check_far(recorded)
    assert 0.1 < share <= 0.5  # of 32 vectors a thousand units from the origin


@pytest.mark.parametrize("unknown", ["random", "extra", 1])
def test_remap_is_the_place_in_the_list_and_back(tmp_path, unknown):
    np.save(tmp_path / "used.npy", np.array([9, 2, 4, 2]))
    quantizer = ours.VectorQuantizer2(12, 4, 0.25, remap=tmp_path / "used.npy", unknown_index=unknown)
    codes = torch.tensor([[9, 2, 4], [4, 11, 0]])
    new = quantizer.remap_to_used(codes)
    known = torch.tensor([[0, 1, 2], [2, -1, -1]])
    assert torch.equal(new[known >= 0], known[known >= 0])
    assert quantizer.re_embed == (5 if unknown == "extra" else 4)
    assert (new[1, 1:] == {"extra": 4, 1: 1}.get(unknown, new[1, 1:])).all()
    kept = new.clone()
    back = quantizer.unmap_to_all(new)
    assert torch.equal(back[known >= 0], codes[known >= 0])
    assert torch.equal(new, kept)
    if unknown == "extra":
        assert (back[1, 1:] == 9).all()


def test_what_it_does_not_do_it_refuses():
    with pytest.raises(InputError, match="remap"):
        ours.EMAVectorQuantizer(8, 4, 0.25, remap="used.npy")
    quantizer = ours.VectorQuantizer2(8, 4, 0.25)
    z = torch.randn(1, 4, 2, 2)
    quantizer(z, temp=1.0)
    for name, value in (("temp", 0.5), ("rescale_logits", True), ("return_logits", True)):
        with pytest.raises(InputError, match=name):
            quantizer(z, **{name: value})
    with pytest.raises(InputError, match="z: expected"):
        quantizer(torch.randn(1, 3, 2, 2))
    with pytest.raises(InputError, match="inds"):
        quantizer.remap_to_used(torch.zeros(3, dtype=torch.int64))


def test_ema_stops_where_update_is_off():
    quantizer = ours.EMAVectorQuantizer(8, 4, 0.25)
    quantizer.embedding.update = False
    before = quantizer.embedding.weight.clone()
    quantizer(torch.randn(1, 4, 2, 2))
    assert torch.equal(quantizer.embedding.weight, before)
    quantizer.embedding.update = True
    quantizer(torch.randn(1, 4, 2, 2))
    assert not torch.equal(quantizer.embedding.weight, before)
