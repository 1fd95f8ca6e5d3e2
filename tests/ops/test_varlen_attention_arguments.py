"""What packed attention says about arguments that do not fit."""

import pytest
import torch

from dqcore.ops import varlen_attention


def cumulate(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


BAD = {
    "q: expected 3 dimensions": {"q": torch.zeros(3, 2)},
    "k: expected torch.float32 as q": {"k": torch.zeros(8, 2, 20, dtype=torch.float64)},
    "k: expected 20 channels and a number of heads that divides 2": {"k": torch.zeros(8, 3, 20)},
    "v: expected shape": {"v": torch.zeros(8, 1, 20)},
    "q: expected 1 to 256 channels": {x: torch.zeros(8, 2, 257) for x in "qkv"},
    "cu_seqlens_q: expected int32": {"cu_seqlens_q": torch.tensor([0, 5])},
    "cu_seqlens_q: expected values rising from 0 to at most 8": {"cu_seqlens_q": cumulate([3, 9])},
    "cu_seqlens_q: expected the start": {"cu_seqlens_q": cumulate([])[:0]},
    "cu_seqlens_k: expected 2 sequences": {"cu_seqlens_k": cumulate([3])},
    "cu_seqlens_k: expected values rising": {"cu_seqlens_k": torch.tensor([0, 4, 3], dtype=torch.int32)},
    "max_seqlen_q: expected at least 3": {"max_seqlen_q": 2},
    "max_seqlen_k: expected at least 3": {"max_seqlen_k": 2},
    "dropout_p: expected a probability": {"dropout_p": 1.0},
    "dropout_seed: expected two values": {"dropout_p": 0.5, "dropout_seed": torch.zeros(1, dtype=torch.int64)},
    "softmax_scale: expected a positive number": {"softmax_scale": 0.0},
    "window_size: expected": {"window_size": (-2, 0)},
    "prefix_lengths: expected 2": {"prefix_lengths": torch.zeros(3, dtype=torch.int32)},
    "precision: expected 'ieee'": {"precision": "exact"},
    "expected one device": {"cu_seqlens_q": torch.zeros(3, dtype=torch.int32, device="meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_invalid_input(message):
    q, k, v = torch.zeros(3, 8, 2, 20)
    cu = cumulate([3, 2])
    given = {"q": q, "k": k, "v": v, "cu_seqlens_q": cu, "cu_seqlens_k": cu} | BAD[message]
    with pytest.raises((TypeError, ValueError), match=message):
        varlen_attention(**given)
