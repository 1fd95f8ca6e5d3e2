"""Attention with dropout on the CPU, over several blocks of queries, against the reference in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dqcore import backends
from dqcore.ops import dropout_mask, varlen_attention
from dqcore.ops.cpu.dropout_mask import drop_weights
from dqcore.ops.cpu.dropped_attention import ROWS
from dqcore.ops.cpu.varlen_attention import varlen_attention_backward_cpu, varlen_attention_cpu
from dqcore.ops.reference.dropout_mask import dropout_mask_reference
from dqcore.ops.varlen_attention import setting_of

SEED = torch.tensor([-(2**61) + 17, 2**40 + 5])
LONG = 2 * ROWS + 45
KINDS = {
    "causal": {},
    "open": {"causal": False},
    "left": {"window_size": (70, -1)},
    "both": {"causal": False, "window_size": (ROWS + 3, 9)},
    "narrow": {"causal": False, "window_size": (0, 0)},
    "prefix": {"prefix_lengths": torch.tensor([40, ROWS + 9, 0], dtype=torch.int32)},
    "prefix_left": {"window_size": (3, -1), "prefix_lengths": torch.tensor([0, 2, LONG], dtype=torch.int32)},
}
#: Queries and keys of three sequences.
LENGTHS = {
    "alike": ([LONG, 1, ROWS], [LONG, 1, ROWS]),
    "cross": ([ROWS + 30, 5, LONG], [LONG, 2 * ROWS, ROWS + 70]),  # the last has queries that see nothing
}


@pytest.fixture(params=["extension", "reference"])
def random_bytes(request, monkeypatch):
    """Where the random bytes come from."""
    if request.param == "reference":
        monkeypatch.setattr(backends, "extension", lambda: None)
    elif backends.extension() is None:
        pytest.skip("dqcore._C was not built")


def tensors(lengths, heads, dtype):
    queries, keys = lengths
    generator = torch.Generator().manual_seed(1)
    shapes = [(sum(queries) + 2, heads[0], 16), *[(sum(keys) + 1, heads[1], 16)] * 2]
    cu = [torch.tensor([0, *side]).cumsum(0).int() for side in lengths]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes], cu


def results(given, cu, **options):
    leaves = [x.clone().requires_grad_() for x in given]
    out, lse = varlen_attention(*leaves, *cu, dropout_p=0.3, dropout_seed=SEED, return_lse=True, **options)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    return [out.detach(), lse, *torch.autograd.grad(out, leaves, pull)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["each", "grouped"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_reference(kind, heads, lengths, random_bytes):
    given, cu = tensors(LENGTHS[lengths], heads, torch.float32)
    expected = results([x.double() for x in given], cu, **KINDS[kind])
    for actual, exact in zip(results(given, cu, **KINDS[kind]), expected, strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    given, cu = tensors(LENGTHS["cross"], (4, 2), dtype)
    expected = results([x.double() for x in given], cu)
    for actual, exact in zip(results(given, cu), expected, strict=True):
        rounding = torch.finfo(actual.dtype).eps * exact.abs().max()
        torch.testing.assert_close(actual.double(), exact, rtol=0, atol=max(1e-5, 2 * rounding.item()))


def test_what_a_query_does_not_see_cannot_spoil_it():
    """Keys that nobody sees may hold anything, as in the reference; causal, key j is seen by queries from j on."""
    (q, k, v), cu = tensors(([LONG], [LONG]), (2, 2), torch.float32)
    whole = varlen_attention(q, k, v, *cu, dropout_p=0.3, dropout_seed=SEED)
    k, v = k.clone(), v.clone()
    k[ROWS + 1 : LONG] = torch.inf
    spoilt = varlen_attention(q, k, v, *cu, dropout_p=0.3, dropout_seed=SEED)
    assert torch.equal(spoilt[: ROWS + 1], whole[: ROWS + 1])


def test_memory_is_that_of_a_block():
    """No tensor is made that grows with the square of the length."""

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple) else (result,):
                if isinstance(one, torch.Tensor) and "view" not in str(function):
                    self.found = max(self.found, one.numel())
            return result

    length = 8 * ROWS
    given, cu = tensors(([length], [length]), (2, 2), torch.float32)
    setting = setting_of(given[0], tuple(cu), None, 0.3, SEED, (-1, -1), None, "ieee")
    with Largest() as largest:
        out, lse = varlen_attention_cpu(*given, setting)
        varlen_attention_backward_cpu(out, *given, out, lse, setting)
    assert largest.found == 2 * ROWS * length


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 64), (2, 3, 200), (2, 40, 63)])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (7, 64), (2**31, 192)])
def test_weights_are_dropped_by_the_mask(shape, row, column, random_bytes):
    heads, rows, columns = shape
    for keep in (1, 128, 255, 256):
        mask = dropout_mask_reference(SEED, heads, torch.arange(row, row + rows), column + columns, keep)
        weights = torch.randn(shape)
        dropped = weights.clone()
        drop_weights(dropped, SEED, row, column, keep)
        assert torch.equal(dropped, weights.where(mask[..., column:], 0.0))


@pytest.mark.skipif(backends.extension() is None, reason="dqcore._C was not built")
def test_threads_share_the_rows(monkeypatch):
    """Enough weights that threads are started, and a number of rows that they cannot share evenly."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    weights = torch.ones(2, 1001, 2000)
    drop_weights(weights, SEED, 0, 0, 200)
    assert torch.equal(weights.bool(), dropout_mask(SEED, 2, 1001, 2000, 56 / 256))
