"""What only a GPU shows of packed attention: repeats, CUDA graphs, large offsets, and the rounding of tensor cores."""

import pytest
import torch

import dqcore
from dqcore.ops import varlen_attention
from dqcore.ops.dropout_mask import draw_seed
from dqcore.testing import captured

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = "cuda"
LENGTHS = [300, 0, 1, 63, 64, 65, 500, 129]


def cumulate(lengths):
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)


def inputs(lengths, heads=4, dim=64, dtype=torch.bfloat16, slack=0):
    generator = torch.Generator().manual_seed(1)
    rows = sum(lengths) + slack
    qkv = torch.randn(rows, 3, heads, dim, generator=generator).to(DEVICE, dtype)
    return [x.requires_grad_() for x in qkv.unbind(1)]


def results(leaves, *rest, **options):
    """Output and gradients."""
    out = varlen_attention(*leaves, *rest, **options)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, pull)]


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_a_thousand_repeats_are_identical(dim):
    leaves, cu, seed = inputs(LENGTHS, dim=dim), cumulate(LENGTHS), draw_seed(torch.device(DEVICE))
    first = results(leaves, cu, dropout_p=0.1, dropout_seed=seed)
    for _ in range(999):
        assert equal(results(leaves, cu, dropout_p=0.1, dropout_seed=seed), first)


def naive(q, k, v, cu):
    """Attention as one would write it, every product and the softmax in the inputs' dtype."""
    outs = []
    for first, last in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        query, key, value = (x[first:last].transpose(0, 1) for x in (q, k, v))
        hidden = torch.ones(last - first, last - first, dtype=torch.bool, device=q.device).triu(1)
        scores = (query @ key.mT * q.shape[2] ** -0.5).masked_fill(hidden, -torch.inf)
        outs.append((scores.softmax(2) @ value).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [16, 64, 72, 128, 200, 256])
def test_errors_at_most_twice_those_of_plain_attention(dim, dtype):
    """The rule of flash-attention's own tests, against float64."""
    leaves, cu = inputs(LENGTHS, dim=dim, dtype=dtype), cumulate(LENGTHS)
    pull = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(2)).to(leaves[0])
    plain = naive(*leaves, cu)
    plain = [plain.detach(), *torch.autograd.grad(plain, leaves, pull)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    exact = naive(*wide, cu)
    exact = [exact.detach(), *torch.autograd.grad(exact, wide, pull.double())]
    for mine, rough, want in zip(results(leaves, cu), plain, exact, strict=True):
        allowed = 2 * (rough - want).abs().max() + 1e-5 * want.abs().max()
        assert (mine - want).abs().max() <= allowed


@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_float32_is_float32(dim, precision):
    """Both are as exact as float32 allows; one TF32 product would be off by 1e-3."""
    leaves, cu = inputs(LENGTHS, dim=dim, dtype=torch.float32), cumulate(LENGTHS)
    options = {"dropout_p": 0.1, "dropout_seed": draw_seed(torch.device(DEVICE))}
    mine = results(leaves, cu, precision=precision, **options)
    with dqcore.backend("reference"):
        exact = results([x.detach().double().requires_grad_() for x in leaves], cu, **options)
    for actual, want in zip(mine, exact, strict=True):
        assert (actual - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_rows_left_over_have_no_gradient(dropout_p):
    """Whatever stands there: nothing comes out, and memory that held NaN before holds zeros after."""
    count = sum(LENGTHS)
    leaves = inputs(LENGTHS, slack=300)
    for x in leaves:
        x.data[count:] = torch.nan
    torch.full((2**26,), torch.nan, device=DEVICE)  # what the allocator gives out next
    for x in results(leaves, cumulate(LENGTHS), dropout_p=dropout_p):
        assert (x[count:] == 0).all() and x[:count].isfinite().all()


def test_a_graph_takes_new_lengths_and_draws_new_dropout():
    """The lengths change under the graph; each replay draws a seed, and equals an eager call with that seed."""
    leaves, cu = inputs([512], slack=0), cumulate([200, 56, 256])
    pull = torch.randn_like(leaves[0])

    def step():
        seed = draw_seed(torch.device(DEVICE))
        out = varlen_attention(*leaves, cu, dropout_p=0.25, dropout_seed=seed)
        return seed, out, *torch.autograd.grad(out, leaves, pull)

    graph, (seed, *kept) = captured(step)
    seeds = set()
    for lengths in ([512, 0, 0], [1, 200, 311], [100, 100, 100], [100, 100, 100]):
        cu.copy_(cumulate(lengths))
        graph.replay()
        seeds.add(tuple(seed.tolist()))
        out = varlen_attention(*leaves, cu.clone(), dropout_p=0.25, dropout_seed=seed.clone())
        assert equal([out, *torch.autograd.grad(out, leaves, pull)], kept)
    assert len(seeds) == 4


def test_a_graph_without_a_seed_draws_its_own():
    leaves, cu = inputs([300]), cumulate([300])
    graph, out = captured(lambda: varlen_attention(*leaves, cu, dropout_p=0.5).detach())
    runs = []
    for _ in range(3):
        graph.replay()
        runs.append(out.clone())
    assert not torch.equal(runs[0], runs[1]) and not torch.equal(runs[1], runs[2])


def test_strides_past_two_to_the_31():
    rows, heads, dim = 4200, 2, 64
    if torch.cuda.get_device_properties(0).total_memory < 12e9:
        pytest.skip("needs 12 GB")
    wide = torch.empty(rows, 2**19 + 512, dtype=torch.bfloat16, device=DEVICE)
    near = inputs([rows], heads, dim)
    far = []
    for i, x in enumerate(near):
        place = wide[:, 256 * i : 256 * i + heads * dim].unflatten(1, (heads, dim))
        place.copy_(x.detach())
        far.append(place.requires_grad_())
    cu = cumulate([4000, 200])
    assert equal(results(far, cu), results(near, cu))


def test_more_than_two_to_the_31_values():
    length, heads, dim = 64, 32, 128
    count = 2**31 // (length * heads * dim) + 2
    if torch.cuda.get_device_properties(0).total_memory < 60e9:
        pytest.skip("needs 60 GB")
    alone = inputs([length], heads, dim)
    leaves = [x.detach().repeat(count, 1, 1).requires_grad_() for x in alone]
    out = varlen_attention(*leaves, cumulate([length] * count))
    pull = torch.randn(alone[0].shape, generator=torch.Generator().manual_seed(2)).to(out)
    grads = torch.autograd.grad(out, leaves, pull.repeat(count, 1, 1))
    for whole, one in zip([out.detach(), *grads], results(alone, cumulate([length])), strict=True):
        assert torch.equal(whole[:length], one) and torch.equal(whole[-length:], one)
