"""Queries, keys and values in one tensor: the same bits as three, and one gradient."""

import pytest
import torch

from dqcore.errors import InputError
from dqcore.ops import varlen_attention, varlen_attention_packed

ENDS = [0, 3, 3, 9, 10]
SETTINGS = {
    "causal": {},
    "dropout": {"dropout_p": 0.25, "dropout_seed": torch.tensor([5, 1])},
    "window": {"causal": False, "window_size": (4, 2), "softmax_scale": 0.3, "precision": "ieee"},
    "prefix": {"prefix_lengths": torch.tensor([1, 0, 4, 1], dtype=torch.int32)},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SETTINGS)
def test_same_bits(route, name, dtype):
    qkv = torch.randn(12, 3, 1, 16).to(route, dtype).requires_grad_()  # two rows after the last sequence
    ends = torch.tensor(ENDS, dtype=torch.int32, device=route)
    given = SETTINGS[name].items()
    setting = {key: value.to(route) if isinstance(value, torch.Tensor) else value for key, value in given}
    weight = torch.randn(12, 1, 16).to(route, dtype)
    together = varlen_attention_packed(qkv, ends, **setting)
    apart = varlen_attention(*qkv.unbind(1), ends, **setting)
    assert torch.equal(together, apart)
    (mine,), (theirs,) = (torch.autograd.grad((out * weight).sum(), qkv) for out in (together, apart))
    assert torch.equal(mine, theirs) and mine.is_contiguous()


def test_strides_and_nothing(route):
    ends = torch.tensor([0, 5], dtype=torch.int32, device=route)
    qkv = torch.randn(5, 3, 2, 16, device=route)
    apart = qkv.transpose(0, 3).contiguous().transpose(0, 3)
    assert torch.equal(varlen_attention_packed(apart, ends), varlen_attention_packed(qkv, ends))
    none = qkv[:0].clone().requires_grad_()
    out = varlen_attention_packed(none, ends * 0)
    assert out.shape == (0, 2, 16)
    assert torch.autograd.grad(out.sum(), none)[0].shape == none.shape


def test_it_compiles_and_is_an_op(route):
    ends = torch.tensor([0, 3, 5], dtype=torch.int32, device=route)
    qkv = torch.randn(5, 3, 2, 16, device=route, requires_grad=True)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    arguments = (qkv, ends, ends, None, None, -1, 0, 0.25, 256, "tf32x3")
    torch.library.opcheck(torch.ops.dqcore.varlen_attention_packed, arguments, test_utils=tests)
    run = torch.compile(varlen_attention_packed, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(qkv, ends), varlen_attention_packed(qkv, ends))


def test_a_seed_is_drawn_anew(route):
    ends = torch.tensor([0, 9], dtype=torch.int32, device=route)
    qkv = torch.randn(9, 3, 2, 16, device=route)
    first, second = (varlen_attention_packed(qkv, ends, dropout_p=0.5) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("qkv", "message"),
    [
        (torch.ones(5, 3, 4), "qkv: expected 4 dimensions"),
        (torch.ones(5, 2, 1, 4), r"qkv: expected shape \(T, 3, H, d\), .*, got \(5, 2, 1, 4\)"),
        (torch.ones(5, 3, 0, 4), "qkv: expected shape .* at least one head"),
        (torch.ones(5, 3, 1, 257), "qkv: expected shape .* 1 to 256 channels"),
        (torch.ones(4, 3, 1, 4), "^cu_seqlens: expected values rising from 0 to at most 4"),
    ],
)
def test_refuses(qkv, message):
    with pytest.raises(InputError, match=message):
        varlen_attention_packed(qkv, torch.tensor([0, 5], dtype=torch.int32))


def test_refuses_prefixes_of_other_sequences():
    ends, prefixes = torch.tensor([0, 5], dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(InputError, match="prefix_lengths: expected 1, one for each sequence, got 2"):
        varlen_attention_packed(torch.ones(5, 3, 1, 4), ends, prefix_lengths=prefixes)
