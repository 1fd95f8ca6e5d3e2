"""Ours against what TiTok's quantizer did, recorded with ``record.py``."""

import pytest
import torch

import dqcore.compat.titok as ours
from dqcore.errors import InputError

LIBRARY, OURS = "titok", ours


def test_does_what_theirs_did(recorded, check_trace):
    check_trace(recorded)


def test_where_codes_differ_ours_are_nearer(recorded, check_far):
    quantizer = recorded.quantizer
    share = check_far(recorded, quantizer.use_l2_norm)
    assert 0.1 < share <= 0.5  # of 32 vectors a thousand units from the origin


def test_state_dict_has_the_same_keys(recorded):
    first = [name.removeprefix("first/") for name in recorded.theirs if name.startswith("first/")]
    assert sorted(recorded.quantizer.state_dict()) == sorted(first)


def test_codes_that_nothing_chooses_move_to_the_nearest_vector():
    quantizer = ours.VectorQuantizer(3, 2, clustering_vq=True)
    quantizer.embedding.weight.data = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-9.0, 0.0]])
    z = torch.tensor([[0.1, 0.0], [0.0, 0.2], [0.3, 1.0], [-1.0, 0.0]]).T.view(1, 2, 2, 2)
    indices = quantizer(z)[1]["min_encoding_indices"]
    assert (indices == 0).all()
    keep = torch.exp(torch.tensor([-0.01 * 30 / 0.01 - 1e-3, -1e-3, -1e-3]))
    closest = torch.tensor([[0.1, 0.0], [0.3, 1.0], [-1.0, 0.0]])
    before = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-9.0, 0.0]])
    expected = before * (1 - keep[:, None]) + closest * keep[:, None]
    torch.testing.assert_close(quantizer.embedding.weight.data, expected)
    torch.testing.assert_close(quantizer.embed_prob, torch.tensor([0.01, 0.0, 0.0]))


def test_computes_in_float32_whatever_comes():
    quantizer = ours.VectorQuantizer(8, 4)
    quantized, result = quantizer(torch.randn(1, 4, 2, 2, dtype=torch.bfloat16))
    assert quantized.dtype == result["quantizer_loss"].dtype == torch.float32


def test_autocast_changes_no_vector_of_a_weighted_mean():
    quantizer, weights = ours.VectorQuantizer(8, 4, use_l2_norm=True), torch.rand(3, 8)
    expected = quantizer.get_codebook_entry(weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.get_codebook_entry(weights), expected)


def test_wrong_shapes_are_refused():
    quantizer = ours.VectorQuantizer(8, 4)
    with pytest.raises(InputError, match="z: expected"):
        quantizer(torch.randn(1, 5, 2, 2))
    with pytest.raises(InputError, match="indices"):
        quantizer.get_codebook_entry(torch.zeros(1, 2, 2, dtype=torch.int64))
