import pytest
import torch
import torch._dynamo.testing

import dqcore
from dqcore.ops import dropout_mask, varlen_attention
from dqcore.testing import assert_close

LENGTHS = [0, 1, 31, 32, 0, 33, 70]  # about the 32 of a float32 tile
OTHER = [5, 0, 40, 16, 60, 2, 90]
SEED = torch.tensor([2**62 + 5, -6])


def cumulate(lengths, device="cpu"):
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)


def inputs(lengths=LENGTHS, key_lengths=None, heads=2, key_heads=2, dim=20, dtype=torch.float32, device="cpu"):
    """Views of one buffer, with three rows more than the sequences hold; one draw of values, whatever the device."""
    key_lengths = lengths if key_lengths is None else key_lengths
    generator = torch.Generator().manual_seed(1)

    def draw(rows, count):
        return torch.randn(rows + 3, 2, count, dim, generator=generator)[:, 1].to(device, dtype)

    q, k, v = draw(sum(lengths), heads), draw(sum(key_lengths), key_heads), draw(sum(key_lengths), key_heads)
    return q, k, v, cumulate(lengths, device), cumulate(key_lengths, device)


def oracle(q, k, v, cu_q, cu_k, *, dropout_p=0.0, causal=True, window_size=(-1, -1), prefix_lengths=None, scale=None):
    """Float64, one head and one query at a time, from the definition."""
    q, k, v = q.double(), k.double(), v.double()
    group, out = q.shape[1] // k.shape[1], torch.zeros_like(q)
    lse = torch.full(q.shape[1::-1], -torch.inf, dtype=torch.float64)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    keep = round(256 * (1 - dropout_p)) / 256
    longest = max([1, *(cu_k[1:] - cu_k[:-1]).tolist()])
    mask = dropout_mask(SEED, q.shape[1], len(q), longest, dropout_p)
    left, right = window_size
    for b in range(len(cu_q) - 1):
        (first, last), (key, end) = cu_q[b : b + 2].tolist(), cu_k[b : b + 2].tolist()
        prefix = 0 if prefix_lengths is None else int(prefix_lengths[b])
        for i in range(last - first):
            place = i + (end - key) - (last - first)
            low = place - left if left >= 0 else 0
            high = place if causal else place + right if right >= 0 else end
            seen = [j for j in range(end - key) if low <= j <= high or j < prefix]
            if not seen:
                continue
            for h in range(q.shape[1]):
                scores = k[key:end, h // group][seen] @ q[first + i, h] * scale
                weights = scores.softmax(0) * mask[h, first + i, seen] / keep
                out[first + i, h] = weights @ v[key:end, h // group][seen]
                lse[h, first + i] = scores.logsumexp(0)
    return out, lse


def gradients(q, k, v, *rest, **options):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out, lse = varlen_attention(*leaves, *rest, return_lse=True, **options)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    return out.detach(), lse, *torch.autograd.grad(out, leaves, pull)


CASES = {
    "causal": {},
    "whole": {"causal": False},
    "left": {"window_size": (7, -1)},
    "both": {"window_size": (7, 3), "causal": False},
    "right": {"window_size": (-1, 3), "causal": False},
    "prefix": {"prefix_lengths": [3, 3, 30, 4, 70, 0, 200]},
    "prefix_left": {"prefix_lengths": [3, 3, 30, 4, 70, 0, 2], "window_size": (5, -1)},
    "dropout": {"dropout_p": 0.25},
    "scale": {"softmax_scale": 0.4},
}
SHAPES = {
    "self": {"heads": 1, "key_heads": 1},
    "grouped": {"heads": 4, "key_heads": 2},
    "cross": {"key_lengths": OTHER, "heads": 2, "key_heads": 1},
}
INTERPRETED = {"grouped": ("dropout",), "cross": ("causal", "prefix_left")}  # "self" takes all


def options_of(case, device):
    options = dict(CASES[case])
    if "prefix_lengths" in options:
        options["prefix_lengths"] = torch.tensor(options["prefix_lengths"], dtype=torch.int32, device=device)
    return options | ({"dropout_seed": SEED.to(device)} if "dropout_p" in options else {})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_matches_reference(request, route, case, shape):
    """Out, lse and the three gradients: the forward pass against the definition, the backward against float64."""
    if request.node.callspec.params["route"] == "cpu-interpreter" and case not in INTERPRETED.get(shape, CASES):
        pytest.skip("seen at another shape")
    given = inputs(**SHAPES[shape], device=route)
    options = options_of(case, route)
    out, lse, *grads = gradients(*given, **options)
    plain = {name: value for name, value in options.items() if name not in ("dropout_seed", "softmax_scale")}
    host = [x.cpu() for x in given]
    if (prefix := plain.get("prefix_lengths")) is not None:
        plain["prefix_lengths"] = prefix.cpu()
    wanted, wanted_lse = oracle(*host, **plain, scale=options.get("softmax_scale"))
    assert_close(out.cpu(), wanted)
    assert torch.equal(lse.cpu().isfinite(), wanted_lse.isfinite())
    assert_close(lse.cpu().nan_to_num(neginf=0), wanted_lse.nan_to_num(neginf=0))
    with dqcore.backend("reference"):
        _, _, *wanted_grads = gradients(*[x.double() for x in given[:3]], *given[3:], **options)
    for grad, want in zip(grads, wanted_grads, strict=True):
        assert_close(grad, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(route, dtype):
    given = inputs([40, 5], dtype=dtype, device=route)
    results = gradients(*given, dropout_p=0.25, dropout_seed=SEED.to(route))
    with dqcore.backend("reference"):
        exact = gradients(*[x.double() for x in given[:3]], *given[3:], dropout_p=0.25, dropout_seed=SEED.to(route))
    assert results[0].dtype == results[2].dtype == dtype
    assert results[1].dtype == torch.float32
    for result, want in zip(results, exact, strict=True):
        finite = want.isfinite()
        scale = 3 * want[finite].abs().max().item()
        assert_close(result[finite] / scale, want[finite] / scale, dtype)


@pytest.mark.parametrize("dim", [1, 16, 72, 130])
def test_head_sizes(route, dim):
    given = inputs([17, 3], dim=dim, heads=1, key_heads=1, device=route)
    out, _, *grads = gradients(*given)
    assert_close(out.cpu(), oracle(*[x.cpu() for x in given])[0])
    with dqcore.backend("reference"):
        for grad, want in zip(grads, gradients(*[x.double() for x in given[:3]], *given[3:])[2:], strict=True):
            assert_close(grad, want)


def test_long_sequence(request, route):
    """1,000 queries cross every block; the last ones against the definition."""
    if request.node.callspec.params["route"] == "cpu-reference":
        pytest.skip("the other routes are compared with it")
    given = inputs([65, 1000], heads=1, key_heads=1, dim=16, device=route)
    with dqcore.backend("reference"):
        wanted = varlen_attention(*given)
    assert_close(varlen_attention(*given), wanted)


def test_packed_equals_each_sequence(route):
    given = inputs(device=route)
    together = gradients(*given)
    q, k, v, cu, _ = given
    pull = torch.randn(q.shape, generator=torch.Generator().manual_seed(2)).to(q)
    for first, last in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        leaves = [x[first:last].clone().requires_grad_() for x in (q, k, v)]
        out, lse = varlen_attention(*leaves, cumulate([last - first], route), return_lse=True)
        alone = (out, lse.T, *torch.autograd.grad(out, leaves, pull[first:last]))
        for mine, whole in zip(alone, (together[0], together[1].T, *together[2:]), strict=True):
            assert torch.equal(mine, whole[first:last])


def test_batch_mates_change_nothing(route):
    """Permuted without dropout, appended to with it."""
    q, k, v, cu, _ = inputs([9, 30, 0, 17], device=route)
    out = varlen_attention(q, k, v, cu)
    parts, order = [9, 30, 0, 17], [3, 0, 2, 1]
    moved = [torch.cat([x[: int(cu[-1])].split(parts)[i] for i in order]) for x in (q, k, v)]
    back = varlen_attention(*moved, cumulate([parts[i] for i in order], route)).split([parts[i] for i in order])
    for place, i in enumerate(order):
        assert torch.equal(back[place], out[: int(cu[-1])].split(parts)[i])
    options = {"dropout_p": 0.5, "dropout_seed": SEED.to(route)}
    fewer = varlen_attention(q, k, v, cu[:3], **options)
    assert torch.equal(fewer[:39], varlen_attention(q, k, v, cu, **options)[:39])


def test_rows_left_over_are_zero(route):
    q, k, v, cu, _ = inputs([3, 4], device=route)
    for x in (q, k, v):
        x[7:] = torch.nan
    out, lse, *grads = gradients(q, k, v, cu)
    for x in (out, *grads):
        assert (x[7:] == 0).all() and x[:7].isfinite().all()
    assert (lse[:, 7:] == -torch.inf).all()
    empty = varlen_attention(q[:0], k, v, torch.zeros(1, dtype=torch.int32, device=route))
    assert empty.shape == (0, 2, 20)


def test_window_that_covers_all_is_none(route):
    given = inputs([50, 9], device=route)
    assert torch.equal(varlen_attention(*given, window_size=(50, 0)), varlen_attention(*given, window_size=(50, -1)))
    assert_close(varlen_attention(*given, window_size=(50, -1)), varlen_attention(*given))
    far = varlen_attention(*given, window_size=(2**31 - 1, 2**31 - 1), causal=False)
    assert torch.equal(far, varlen_attention(*given, causal=False))


@pytest.mark.parametrize("case", ["causal", "prefix_left", "both", "dropout"])
def test_gradcheck(case):
    q, k, v, cu_q, cu_k = inputs([0, 2, 5], [1, 4, 3], heads=2, key_heads=1, dim=3, dtype=torch.float64)
    options = options_of(case, "cpu")
    if "prefix_lengths" in options:
        options["prefix_lengths"] = options["prefix_lengths"][:3]
    leaves = [x.contiguous().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: varlen_attention(*x, cu_q, cu_k, **options), leaves)


def test_gradcheck_in_float32(route):
    """With dropout, along one direction, by a central difference."""
    given = inputs([12, 3], device=route)
    options = {"dropout_p": 0.5, "dropout_seed": SEED.to(route)}
    _, _, *grads = gradients(*given, **options)
    pull = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(2)).to(route)
    for i in range(3):
        step = torch.zeros_like(given[i])
        step[:15] = torch.randn(step[:15].shape, generator=torch.Generator().manual_seed(i)).to(route) * 0.01
        ends = [[x + sign * step if j == i else x for j, x in enumerate(given[:3])] for sign in (1, -1)]
        up, down = (varlen_attention(*end, *given[3:], **options).double() for end in ends)
        measured = ((up - down) * pull).sum() / 2
        torch.testing.assert_close((grads[i] * step).double().sum(), measured, rtol=2e-3, atol=2e-5)


def test_dropout_replays_from_the_generator():
    given = inputs([30, 8])
    state = torch.get_rng_state()
    first = varlen_attention(*given, dropout_p=0.5)
    assert not torch.equal(varlen_attention(*given, dropout_p=0.5), first)
    torch.set_rng_state(state)
    assert torch.equal(varlen_attention(*given, dropout_p=0.5), first)


def test_dropout_is_unbiased():
    """The mean over 1,000 seeds, in units of its own standard error."""
    given = inputs([12], heads=1, key_heads=1, dim=4)
    runs = torch.stack([varlen_attention(*given, dropout_p=0.3) for _ in range(1000)])[:, :12]
    error = (runs.mean(0) - varlen_attention(*given)[:12]) / (runs.std(0) / 1000**0.5)
    assert error.abs().max() < 4.5
    assert error.square().mean() < 1.6


def test_opcheck():
    q, k, v, cu_q, cu_k = inputs([2, 3], [4, 1], heads=2, key_heads=1, dim=4)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    rest = (cu_q, cu_k, torch.tensor([1, 2], dtype=torch.int32))
    op = torch.ops.dqcore.varlen_attention.default
    for seed, keep in ((None, 256), (SEED, 200)):
        torch.library.opcheck(op, (*leaves, *rest, seed, 3, 0, 0.5, keep, "ieee"))


def test_compiles_once_for_all_lengths():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *x: varlen_attention(*x), fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for lengths in ([3, 4], [9, 1], [20, 6]):
        q, k, v, cu, _ = inputs(lengths)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = compiled(*leaves, cu)
        assert torch.equal(out, varlen_attention(q, k, v, cu))
        out.sum().backward()
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] == counts[2] > 0


def test_compiled_dropout_draws_anew():
    compiled = torch.compile(lambda *x: varlen_attention(*x, dropout_p=0.5), fullgraph=True, backend="aot_eager")
    given = inputs([9, 1])[:4]
    assert not torch.equal(compiled(*given), compiled(*given))
