"""Precision, vectors that are not finite, parts of a batch, codes that are set, and k-means' first batch."""

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dqcore
from dqcore import DynamicQuantizer, backends
from dqcore.codebook import EMA, Gradient, KMeans, RandomRestart, fused
from dqcore.errors import InputError
from dqcore.estimators import Cosine, Rotation
from dqcore.nn import vectors

WAYS = {
    "plain": {},
    "projected": {"codebook_dim": 3},
    "cosine": {"metric": Cosine()},
    "projected-cosine": {"metric": Cosine(), "codebook_dim": 3},
    "rotation": {"estimator": Rotation()},
    "gradient": {"learning": Gradient(), "restart": RandomRestart()},
    "kmeans": {"initialisation": KMeans(2), "restart": RandomRestart()},
}


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", WAYS)
def test_half_precision_keeps_the_codebook_in_float32(name, dtype):
    torch.manual_seed(0)
    quantizer = DynamicQuantizer(8, 20, **WAYS[name]).to(dtype)
    x = torch.randn(2, 8, 5, 4, dtype=dtype, requires_grad=True)
    for _ in range(2):
        out = quantizer(x)
        assert (out.map.dtype, out.loss.dtype) == (dtype, torch.float32)
        (out.map.float().sum() + out.loss).backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()
    wide = {value.dtype for name, value in quantizer.codebook.state_dict().items() if name != "idle"}
    assert wide == {torch.float32}
    quantizer.eval()
    out = quantizer(x)
    embedded = quantizer.embed(out.codes)
    assert embedded.dtype == dtype and torch.equal(embedded, out.map)
    assert quantizer.float().embed(out.codes).dtype == torch.float32
    assert quantizer.double().half().codes.dtype == torch.float32


def test_narrowing_loses_nothing_of_the_codes():
    quantizer = DynamicQuantizer(8, 20)
    before = state(quantizer)
    assert equal(before, quantizer.half().bfloat16().float().state_dict())


def test_gradient_scaler_and_float16_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), DynamicQuantizer(8, 20, codebook_dim=4))
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        with torch.autocast("cpu", torch.float16):
            out = model(torch.randn(2, 3, 4, 4))
        assert out.loss.dtype == torch.float32
        scaler.scale(out.loss + out.map.float().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model[1].codes.dtype == torch.float32


BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("name", WAYS)
def test_vectors_that_are_not_finite_count_nowhere(name):
    torch.manual_seed(0)
    quantizer = DynamicQuantizer(8, 20, nonfinite="mask", **WAYS[name])
    quantizer(torch.randn(2, 8, 5, 4))
    other = copy.deepcopy(quantizer)
    x, mask = torch.randn(2, 8, 5, 4), torch.ones(2, 5, 4, dtype=torch.bool)
    for n, value in enumerate(BAD):
        x[n % 2, 3 * (n % 2), n, n] = value
        mask[n % 2, n, n] = False
    x.requires_grad_()
    torch.manual_seed(1)
    out = quantizer(x)
    clean = x.detach().masked_fill(~mask[:, None], 7.0).requires_grad_()
    torch.manual_seed(1)
    expected = other(clean, mask=mask)
    assert torch.equal(out.codes, expected.codes) and (out.codes[~mask] == -1).all()
    assert torch.equal(out.map, expected.map) and not out.map.permute(0, 2, 3, 1)[~mask].any()
    torch.testing.assert_close(out.loss, expected.loss)
    (out.map.square().sum() + out.loss).backward()
    (expected.map.square().sum() + expected.loss).backward()
    torch.testing.assert_close(x.grad, clean.grad)
    assert not x.grad.permute(0, 2, 3, 1)[~mask].any()
    for (key, one), two in zip(quantizer.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, msg=key)
    for one, two in zip(quantizer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.skipif(not backends.interpreting(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("masked", [False, True])
def test_a_lookup_leaves_out_projected_vectors_that_are_not_finite(monkeypatch, masked):
    """On a GPU nothing is asked for; here the interpreter stands for one. 1e38 is finite, but not once projected."""
    torch.manual_seed(0)
    expected, bad = DynamicQuantizer(8, 20, 2, codebook_dim=4, nonfinite="mask"), [*BAD, 1e38]
    torch.nn.init.constant_(expected.project_in.weight, 2.0)
    expected(torch.randn(1, 8, 4, 4), torch.ones(1, 2, 2).long())
    found = copy.deepcopy(expected)
    maps, grain = [torch.randn(2, 8, 2 << g, 2 << g) for g in range(2)], torch.randint(0, 2, (2, 2, 2))
    for n, value in enumerate(bad):
        maps[n % 2][n // 2, :, n % 2, 1] = value
    mask = grain.new_tensor([[[1, 0], [1, 1]], [[1, 1], [1, 0]]]).bool() if masked else None
    sides = []
    for quantizer, backend in ((expected, "auto"), (found, "interpreter")):
        own = [values.clone().requires_grad_() for values in maps]
        with dqcore.backend(backend):
            if quantizer is found:
                monkeypatch.setattr(vectors, "not_finite", None)  # nobody looks at the values
            out = quantizer(own, grain, mask)
        (out.map.square().sum() + out.loss).backward()
        sides.append([*out, *(values.grad for values in own), *(p.grad for p in quantizer.parameters())])
    for one, two in zip(*sides, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert (sides[0][1] == -1).any() and all(value.isfinite().all() for value in sides[1])
    for (key, one), two in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, msg=key)


def test_granularities_with_vectors_that_are_not_finite():
    maps, grain = [torch.randn(1, 4, 2 << g, 2 << g) for g in range(2)], torch.tensor([[[0, 1], [1, 0]]])
    maps[0][0, 0, 0, 0] = maps[1][0, 1, 0, 3] = float("nan")
    maps[0][0, 0, 0, 1] = float("nan")  # not selected
    quantizer = DynamicQuantizer(4, 9, 2, nonfinite="mask")
    codes = quantizer(maps, grain).codes[0]
    assert (codes < 0).nonzero().tolist() == [[0, 0], [0, 1], [0, 3], [1, 0], [1, 1]]
    with pytest.raises(InputError, match=r"2 of 10 vectors are not finite, the first in image 0 at row 0, column 0"):
        DynamicQuantizer(4, 9, 2)(maps, grain)


def test_the_default_on_a_cpu_is_the_error():
    quantizer = DynamicQuantizer(4, 9, restart=RandomRestart(0.9))
    x = torch.randn(2, 4, 3, 3)
    x[1, 2, 1, 2] = float("inf")
    before = state(quantizer)
    with pytest.raises(InputError, match="1 of 18 vectors are not finite, the first in image 1 at row 1, column 2"):
        quantizer(x)
    assert equal(before, quantizer.state_dict())
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[1, 1, 2] = False
    assert quantizer(x, mask=mask).loss.isfinite()
    assert quantizer(torch.full((1, 4, 3, 3), 3e38)).codes.min() >= 0
    projected = DynamicQuantizer(4, 9, codebook_dim=2)
    torch.nn.init.constant_(projected.project_in.weight, 2.0)
    with pytest.raises(InputError, match="9 of 9 vectors are not finite"):  # these are, but not once projected
        projected(torch.full((1, 4, 3, 3), 1e38))
    with pytest.raises(InputError, match="nonfinite"):
        DynamicQuantizer(4, 9, nonfinite="ignore")


@pytest.mark.parametrize("options", [{}, {"learning": Gradient()}, {"restart": RandomRestart(0.5)},
                                     {"initialisation": KMeans()}], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["empty", "no width", "masked", "not finite"])
def test_a_batch_without_vectors_teaches_nothing(kind, options):
    quantizer = DynamicQuantizer(4, 9, nonfinite="mask", **options)
    if "initialisation" not in options:
        quantizer(torch.randn(1, 4, 3, 3))
    before = state(quantizer)
    x = {"empty": torch.randn(0, 4, 3, 3), "no width": torch.randn(2, 4, 3, 0)}.get(kind, torch.randn(2, 4, 3, 3))
    x = torch.full_like(x, float("nan")) if kind == "not finite" else x
    out = quantizer(x, mask=torch.zeros(2, 3, 3, dtype=torch.bool) if kind == "masked" else None)
    assert out.map.shape == x.shape and out.loss == 0 and (out.codes == -1).all() and not out.map.any()
    assert equal(before, quantizer.state_dict())


def test_kmeans_before_training_is_an_error():
    quantizer, x = DynamicQuantizer(4, 9, initialisation=KMeans()), torch.randn(2, 4, 5, 5)
    frozen = copy.deepcopy(quantizer).train()
    for call in (
        quantizer.eval(),
        lambda x: quantizer.embed(x[:, 0].long().clamp(0)),
        lambda x: frozen(x, learn=False),
    ):
        with pytest.raises(InputError, match="codebook: it starts from the first training batch"):
            call(x)
    quantizer.train()(x)
    trained = DynamicQuantizer(4, 9, initialisation=KMeans()).eval()
    trained.load_state_dict(quantizer.state_dict())
    assert trained(x).loss < 1


@pytest.mark.parametrize("x", [torch.randn(1, 3, 2, 2), torch.ones(2, 3, 4, 4), torch.zeros(1, 3, 1, 1),
                               1e4 + torch.randn(1, 3, 2, 2) * 1e-3, torch.randn(1, 1, 1, 3) * 1e4])  # fmt: skip
def test_fewer_vectors_than_codes_give_no_duplicates(x):
    quantizer = DynamicQuantizer(x.shape[1], 50, initialisation=KMeans())
    with pytest.warns(UserWarning, match="distinct vectors for 50 codes"):
        codes = quantizer(x, learn=True).codes
    assert codes.min() >= 0
    assert len(quantizer.codes.unique(dim=0)) >= 50 - 1  # the update moves used codes by rounding
    assert (quantizer.embed(codes) - x).abs().max() <= 1e-4 * x.abs().max() + 1e-3


def test_kmeans_draws_each_vector_once():
    quantizer = DynamicQuantizer(3, 16, initialisation=KMeans(0)).freeze()
    x = torch.randn(1, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = quantizer(x)
    assert len(out.codes.unique()) == 16
    assert torch.equal(out.map, x)


@pytest.mark.parametrize("values", [4, 40])
def test_restart_revives_no_duplicates(values):
    torch.manual_seed(0)
    quantizer = DynamicQuantizer(4, 64, restart=RandomRestart(0.9), learning=EMA(decay=0.5))
    pool = torch.randn(values, 4)
    for _ in range(6):
        x = pool[torch.randint(values, (1, 8, 8))].permute(0, 3, 1, 2)
        quantizer(x)
        assert len(quantizer.codes.unique(dim=0)) == 64
    assert (torch.cdist(pool, quantizer.codes).min(1).values < 1e-3).sum() > values // 2


def test_parts_of_a_batch_teach_as_the_whole():
    whole = DynamicQuantizer(4, 90, learning=EMA(decay=0.8), restart=RandomRestart(0.9))
    parts = copy.deepcopy(whole)
    every = DynamicQuantizer(4, 90, learning=EMA(decay=0.8, every=3), restart=RandomRestart(0.9))
    every.load_state_dict(whole.state_dict())
    for _ in range(5):
        x = torch.randn(6, 4, 5, 5)
        whole(x)
        with parts.accumulate():
            before = parts.codes.clone()
            for part in x.split(2):
                parts(part)
            copy.deepcopy(parts)  # takes nothing away
            assert torch.equal(parts.codes, before)
        for part in x.split(2):
            every(part)
        for other in (parts, every):
            for (name, value), expected in zip(other.state_dict().items(), whole.state_dict().values(), strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=name)
    before = state(parts)
    with pytest.raises(ZeroDivisionError), parts.accumulate():
        parts(x)
        _ = 1 / 0
    assert equal(before, parts.state_dict())
    parts(x)
    assert not equal(before, parts.state_dict())
    with pytest.raises(InputError, match="every"):
        EMA(every=0)


@pytest.mark.skipif(not backends.interpreting(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("restart", [None, RandomRestart(0.9)])
def test_codes_with_gradients_are_revived_by_the_op(monkeypatch, restart):
    calls = []
    op = fused.codebook_update
    monkeypatch.setattr(fused, "codebook_update", lambda *args, **options: calls.append(1) or op(*args, **options))
    expected = DynamicQuantizer(4, 30, learning=Gradient(0.8), restart=restart)
    for _ in range(2):
        found, x = copy.deepcopy(expected), torch.randn(2, 4, 5, 5)
        for quantizer, backend in ((expected, "auto"), (found, "interpreter")):
            with dqcore.backend(backend):
                loss = quantizer(x).loss
            quantizer.zero_grad()
            loss.backward()  # codes were written to since, and the gradient is of those before
            torch.optim.SGD(quantizer.parameters(), 0.5).step()
        torch.testing.assert_close(found.codebook.weight.grad, expected.codebook.weight.grad)
        for (name, value), wanted in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6, msg=name)
    assert len(calls) == 2


@pytest.mark.skipif(not backends.interpreting(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("restart", [None, RandomRestart(0.9)])
def test_parts_are_taken_in_by_the_op(monkeypatch, restart):
    calls = []
    op = fused.codebook_update
    monkeypatch.setattr(fused, "codebook_update", lambda *args, **options: calls.append(1) or op(*args, **options))
    expected = DynamicQuantizer(4, 30, learning=EMA(decay=0.8, every=2), restart=restart)
    for _ in range(2):
        found = copy.deepcopy(expected)  # from the same bits, which decide what is drawn
        for part in torch.randn(4, 4, 5, 5).split(2):
            expected(part)
            with dqcore.backend("interpreter"):
                found(part)
        for (name, value), wanted in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6, msg=name)
    assert len(calls) == 2


def test_codes_can_be_set():
    for learning in (EMA(), Gradient()):
        quantizer = DynamicQuantizer(4, 9, initialisation=KMeans(), learning=learning)
        codes = torch.randn(9, 4)
        quantizer.codes = nn.Parameter(codes)
        assert torch.equal(quantizer.codes, codes) and bool(quantizer.initialised)
        assert {*dict(quantizer.named_parameters())} <= {"codebook.weight"}
        out = quantizer(torch.randn(2, 4, 3, 3), learn=False)
        assert torch.equal(quantizer.codes, codes)
        assert torch.equal(quantizer.embed(out.codes), out.map)
        for wrong in (codes[:8], codes.T, [1.0], codes * float("nan")):
            with pytest.raises(InputError, match="codes: expected"):
                quantizer.codes = wrong


def test_one_call_without_learning():
    quantizer, x = DynamicQuantizer(4, 9), torch.randn(2, 4, 3, 3)
    before = state(quantizer)
    quantizer(x, learn=False)
    assert equal(before, quantizer.state_dict())
    quantizer(x)
    assert not equal(before, quantizer.state_dict())


def test_the_loss_and_its_parts():
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    quantizer = DynamicQuantizer(8, 20, commitment=0.4, learning=Gradient())
    out = quantizer(x)
    _, _, loss = out
    error = (out.map - x).square().mean()
    torch.testing.assert_close(loss, out.commitment_loss + out.codebook_loss)
    torch.testing.assert_close(out.commitment_loss, 0.4 * error)
    torch.testing.assert_close(out.codebook_loss, error)
    weight = quantizer.codebook.weight
    assert torch.autograd.grad(out.commitment_loss, [x, weight], allow_unused=True, retain_graph=True)[1] is None
    assert not torch.autograd.grad(out.codebook_loss, [x, weight], allow_unused=True, retain_graph=True)[0] is not None
    assert quantizer.eval()(x).loss > 0
    quiet = DynamicQuantizer(8, 20, eval_loss=False)
    assert quiet(x).loss > 0 and quiet.eval()(x).loss == 0 == quiet(x).commitment_loss


def test_the_loss_does_not_depend_on_the_projection():
    """A projection that keeps eight of the channels of a map that repeats them loses nothing."""
    x = torch.randn(2, 8, 4, 4)
    quantizer, projected = DynamicQuantizer(8, 20), DynamicQuantizer(64, 20, codebook_dim=8)
    projected.codes = quantizer.codes
    with torch.no_grad():
        projected.project_in.weight.copy_(torch.eye(8, 64)[:, :, None, None])
        projected.project_in.bias.zero_()
    torch.testing.assert_close(projected(x.repeat(1, 8, 1, 1)).loss, quantizer(x).loss)


def test_parts_wait_for_no_other_codes():
    """What was gathered belongs to the codes that gathered it, and a copy does not gather for ever."""
    x, codes = torch.randn(2, 4, 4, 4), torch.randn(8, 4)
    quantizer = DynamicQuantizer(4, 8, learning=EMA(decay=0.8, every=2), restart=None)
    expected = copy.deepcopy(quantizer)
    for change in (
        lambda: setattr(quantizer, "codes", codes),
        lambda: quantizer.load_state_dict(expected.state_dict()),
    ):
        quantizer(torch.randn_like(x))
        expected.codes = codes
        change()
        for _ in range(2):
            quantizer(x)
            expected(x)
        assert torch.equal(quantizer.codes, expected.codes)
    with quantizer.accumulate():
        quantizer(x)
        other = copy.deepcopy(quantizer)
    for _ in range(2):
        other(x)
    assert not torch.equal(other.codes, codes) and other._accumulating == 0


@pytest.mark.parametrize("learning", [EMA(), Gradient()], ids=["ema", "gradient"])
def test_a_loaded_codebook_is_float32(learning):
    quantizer = DynamicQuantizer(4, 8, learning=learning)
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in quantizer.state_dict().items()
    }
    quantizer.load_state_dict(half, assign=True)
    assert {value.dtype for value in quantizer.codebook.state_dict().values()} == {torch.float32, torch.int64}


def test_codes_without_smoothing_stay_finite():
    quantizer = DynamicQuantizer(4, 8, learning=EMA(decay=0.0, eps=0.0), restart=None)
    for _ in range(2):
        quantizer(torch.randn(1, 4, 1, 2))
    assert quantizer.codes.isfinite().all()


def test_the_first_batch_of_kmeans_masks_what_is_not_finite():
    quantizer, x = DynamicQuantizer(4, 8, initialisation=KMeans(), nonfinite="mask"), torch.randn(2, 4, 5, 5)
    x[0, 1, 2, 3] = torch.nan
    out = quantizer(x)
    assert out.codes[0, 2, 3] == -1 and not out.map[0, :, 2, 3].any() and out.map.isfinite().all()


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 1e37])
def test_directions_at_any_scale(scale):
    x, codes = (torch.randn(1, 8, 8, 8) * scale).requires_grad_(), torch.randn(64, 8)
    quantizer = DynamicQuantizer(8, 64, metric=Cosine()).eval()
    quantizer.codes = codes
    flat = (x.detach().double() / scale).permute(0, 2, 3, 1).reshape(-1, 8)
    unit = codes.double() / codes.double().norm(dim=1, keepdim=True)
    assert torch.equal(quantizer(x).codes.flatten(), (flat @ unit.T).argmax(1))
    rotating = DynamicQuantizer(8, 64, estimator=Rotation()).eval()
    rotating.codes = codes
    out = rotating(x)
    (grad,) = torch.autograd.grad(out.map.sum(), x)
    z, e = x.detach().double(), out.map.detach().double()
    u, q = z / z.norm(dim=1, keepdim=True), e / e.norm(dim=1, keepdim=True)
    middle = (u + q) / (u + q).norm(dim=1, keepdim=True)
    turned = 1 - 2 * middle * middle.sum(1, keepdim=True) + 2 * u * q.sum(1, keepdim=True)
    expected = turned * e.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True)
    assert (grad.double() - expected).norm() < 1e-5 * expected.norm()


def test_second_derivatives_and_transforms():
    quantizer, x = DynamicQuantizer(4, 8).eval(), torch.randn(2, 4, 4, 4, requires_grad=True)
    quantizer.codes = torch.randn(8, 4)
    out, weight, e = quantizer(x), torch.randn(2, 4, 4, 4), quantizer(x).map.detach()

    def penalty(quantized, loss, x):
        (grad,) = torch.autograd.grad((quantized.pow(3) * weight).sum() + 10 * loss, x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    expected = penalty(x + (e - x).detach(), 0.25 * (x - e).square().mean(), x)
    torch.testing.assert_close(penalty(out.map, out.loss, x), expected, rtol=1e-5, atol=1e-4)
    tangent = torch.randn_like(x)
    _, found = torch.func.jvp(lambda x: quantizer(x).map, (x.detach(),), (tangent,))
    assert torch.equal(found, tangent)
    torch.testing.assert_close(torch.func.grad(lambda x: quantizer(x).map.sum())(x.detach()), torch.ones_like(x))


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (5, 4)])
def test_vmap_over_an_evaluation(shape):
    quantizer, x = DynamicQuantizer(4, 8).eval(), torch.randn(3, *shape)
    quantizer.codes = torch.randn(8, 4)
    found = torch.vmap(lambda one: tuple(quantizer(one)[:2]))(x)
    for of_all, of_each in zip(found, zip(*(quantizer(one)[:2] for one in x), strict=True), strict=True):
        assert torch.equal(of_all, torch.stack(of_each))


@pytest.mark.parametrize("learning", [EMA(), EMA(every=2), Gradient()], ids=str)
@pytest.mark.parametrize("transform", [torch.vmap, lambda call: torch.func.grad(lambda x: call(x).sum())])
def test_no_codebook_learns_within_a_transform(transform, learning):
    """What waits for an update would be a tensor that the transform has left."""
    quantizer, x = DynamicQuantizer(4, 8, learning=learning), torch.randn(3, 2, 4, 4, 4)
    with pytest.raises(InputError, match="learn: no codebook learns within"):
        transform(lambda one: quantizer(one.flatten(0, -4)).map)(x)
    assert transform(lambda one: quantizer(one.flatten(0, -4), learn=False).map)(x).isfinite().all()
    quantizer(x[0])
    quantizer(x[1])


def test_what_would_be_lost_in_a_parametrization_is_an_error():
    for options, lost in (({}, True), ({"learning": Gradient(), "restart": None}, False)):
        quantizer = DynamicQuantizer(4, 8, **options)
        torch.nn.utils.parametrize.register_parametrization(quantizer.codebook, "weight", torch.nn.Identity())
        with pytest.raises(InputError, match=r"codebook\.weight: a parametrization") if lost else nullcontext():
            quantizer(torch.randn(2, 4, 4, 4))
        with pytest.raises(InputError, match=r"codebook\.weight: a parametrization"):
            quantizer.codes = torch.randn(8, 4)
        assert quantizer.eval()(torch.randn(2, 4, 4, 4)).map.isfinite().all()


def test_averages_of_weights_with_buffers():
    quantizer = DynamicQuantizer(4, 8)
    average, seen = AveragedModel(quantizer, use_buffers=True), []
    for _ in range(3):
        quantizer(torch.randn(2, 4, 4, 4))
        average.update_parameters(quantizer)
        seen.append(quantizer.codes.clone())
    torch.testing.assert_close(average.module.codes, torch.stack(seen).mean(0))
    assert average.eval()(torch.randn(2, 4, 4, 4)).codes.max() >= 0


def test_states_of_before_whose_start_was_bool_load():
    quantizer, other = DynamicQuantizer(4, 8), DynamicQuantizer(4, 8)
    quantizer(torch.randn(2, 4, 4, 4))
    state = quantizer.state_dict()
    state["initialised"] = state["initialised"].bool()
    for assign in (False, True):
        other.load_state_dict(state, assign=assign)
        assert torch.equal(other(torch.randn(2, 4, 4, 4)).codes >= 0, torch.ones(2, 4, 4, dtype=torch.bool))


def test_a_projection_of_nothing():
    quantizer = DynamicQuantizer(4, 8, codebook_dim=3)
    out = quantizer(torch.randn(2, 4, 0))
    assert out.map.shape == quantizer.embed(out.codes).shape == (2, 4, 0)


@pytest.mark.parametrize("learning", [EMA(), Gradient()], ids=str)
def test_a_shared_codebook_starts_once(learning):
    """The second quantizer's first batch had started it anew; so had the first one after codes that were written."""
    options = {"initialisation": KMeans(), "learning": learning, "restart": None}
    one, other = (DynamicQuantizer(4, 8, **options) for _ in range(2))
    other.codebook = one.codebook
    one(torch.randn(2, 4, 8, 8))
    assert other.eval()(torch.randn(2, 4, 4, 4)).map.isfinite().all()
    other.train()(torch.randn(2, 4, 8, 8) + 100)
    assert one.codes.mean() < 50 and other.initialised == 1

    written = DynamicQuantizer(4, 8, **options)
    codes = torch.randn(8, 4)
    with torch.no_grad():
        written.codebook.weight[:8] = codes
    assert written(torch.randn(2, 4, 4, 4), learn=False).map.isfinite().all()
    torch.testing.assert_close(written.codes.detach(), codes)
