import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from dqcore.nn import EntropyRouter, FeatureRouter, RandomRouter
from dqcore.nn.gain import GainRouter
from dqcore.nn.router import entropy_thresholds
from dqcore.nn.routing import Routing


def pyramid(granularities, batch=2, dim=8, height=3, width=5):
    return [torch.randn(batch, dim, height * 2**g, width * 2**g) for g in range(granularities)]


IMAGES = torch.zeros(2, 3, 48, 80)


@pytest.mark.parametrize("granularities", [2, 3])
@pytest.mark.parametrize(("gate", "groups"), [("silu", 4), ("relu", 4), ("linear", 0)])
def test_feature_router_in_evaluation(granularities, gate, groups):
    router = FeatureRouter(8, granularities, gate, groups).eval()
    maps = pyramid(granularities)
    routing = router(IMAGES, maps)
    pooled = [norm(m).unfold(2, 2**g, 2**g).unfold(3, 2**g, 2**g).mean((-2, -1)) for g, (norm, m) in enumerate(
        zip(router.norms, maps, strict=True)
    )]  # fmt: skip
    expected = router.gate(torch.cat(pooled, 1).permute(0, 2, 3, 1))
    torch.testing.assert_close(routing.gate_logits, expected)
    assert torch.equal(routing.grain, routing.gate_logits.argmax(-1))
    assert torch.equal(routing.gate.argmax(1), routing.grain)
    assert routing.gate.unique().tolist() == [0, 1]


def test_feature_router_in_training_draws_and_passes_gradients():
    router = FeatureRouter(8, 2, groups=4)
    maps = pyramid(2, batch=400)
    first, second = router(IMAGES, maps), router(IMAGES, maps)
    assert not torch.equal(first.grain, second.grain)
    assert torch.equal(first.gate, torch.nn.functional.one_hot(first.grain, 2).permute(0, 3, 1, 2).float())
    share = first.gate_logits.softmax(-1)[..., 1].mean()
    assert abs(first.grain.float().mean() - share) < 0.04  # the Gumbel argmax is a draw from the softmax
    first.gate[:, 1].mean().backward()
    assert all(parameter.grad.any() for parameter in router.parameters())


def test_refinement_scores_are_positive_where_the_router_goes_on():
    router = FeatureRouter(8, 4, groups=4)
    logits = torch.randn(2, 30, 30, 4)
    routing = Routing(logits.argmax(-1), gate_logits=logits)
    scores = router.refinement_scores(routing)
    assert torch.equal((scores > 0).sum(1), routing.grain)
    assert (scores[:, 1:] <= scores[:, :-1]).all()


def test_refinement_scores_are_logits_per_code_on_the_concave_envelope():
    logits = torch.tensor([[0.0, 6.0, 16.0], [0.0, 1.0, 31.0]]).view(1, 1, 2, 3)  # codes 1, 4, 16
    scores = FeatureRouter(8, 3, groups=4).refinement_scores(Routing(logits.argmax(-1), gate_logits=logits))
    expected = torch.tensor([[6 / 3, 31 / 15], [10 / 12, 31 / 15]], dtype=torch.float64)
    torch.testing.assert_close(scores.view(2, 2), expected)


def noise(batch=6, height=64, width=64):
    amplitude = torch.linspace(0.02, 1, batch * (height // 16) * (width // 16)).view(
        batch, 1, height // 16, width // 16
    )
    scale = amplitude.repeat_interleave(16, 2).repeat_interleave(16, 3)
    return scale * (2 * torch.rand(batch, 3, height, width) - 1)


@pytest.mark.parametrize("ratio", [0.3, (0.25, 0.25)], ids=str)
def test_entropy_router_fits_the_target_shares(ratio):
    images = noise()
    router = EntropyRouter(ratio, 16)
    thresholds = router.fit(image[None] for image in images)
    assert torch.equal(thresholds, thresholds.sort().values)
    shares = torch.bincount(router(images, []).grain.flatten()) / 96
    expected = [0.7, 0.3] if ratio == 0.3 else [0.5, 0.25, 0.25]
    torch.testing.assert_close(shares, torch.tensor(expected), atol=0.02, rtol=0)
    assert torch.equal(thresholds, EntropyRouter(ratio, 16).fit(images))


@pytest.mark.parametrize("count", [1, 2, 7, 50])
@pytest.mark.parametrize("ratio", [(0.5,), (0.3, 0.3), (0.01,)], ids=str)
def test_thresholds_are_quantiles(count, ratio):
    entropies = torch.randn(count, dtype=torch.float64)
    wanted = [float(entropies.quantile(1 - sum(ratio[g:]))) for g in range(len(ratio))]
    assert entropy_thresholds(entropies, ratio) == pytest.approx(wanted)


def test_entropy_router_compares_strictly():
    images = noise(1)
    router = EntropyRouter(0.5, 16)
    entropy = router(images, []).entropy
    router.set_thresholds([float(entropy[0, 1, 2])])
    assert torch.equal(router(images, []).grain, (entropy > entropy[0, 1, 2]).long())


def test_entropy_router_ranks_each_image_until_it_is_fitted():
    images = noise()
    routing = EntropyRouter(0.25, 16)(images, [])
    assert routing.grain.flatten(1).sum(1).tolist() == [4] * 6
    for entropy, grain in zip(routing.entropy, routing.grain, strict=True):
        assert entropy[grain == 1].min() >= entropy[grain == 0].max()


def test_thresholds_that_are_written_in_place_count():
    """So do averages of models and wrappers that broadcast buffers."""
    router = EntropyRouter(0.5, 16)
    average = AveragedModel(router)
    router.fit(noise())
    average.update_parameters(router)
    images = noise(2)
    assert average.module.fitted
    assert torch.equal(average(images, []).grain, router(images, []).grain)


def test_the_host_does_not_ask_for_thresholds_that_nobody_wrote(monkeypatch):
    """On a GPU it would wait, and a graph that is captured could not."""
    router, asked = EntropyRouter(0.5, 16), []
    monkeypatch.setattr(torch.Tensor, "isnan", lambda values: asked.append(values) or torch.isnan(values))
    for _ in range(3):
        router(noise(1), [])
    assert not asked
    router.thresholds.fill_(torch.nan)
    for _ in range(3):
        router(noise(1), [])
    assert len(asked) == 1 and not router.fitted


def test_entropy_router_keeps_its_thresholds_in_the_state():
    router, other = EntropyRouter(0.5, 16), EntropyRouter(0.5, 16)
    router.fit(noise())
    other.load_state_dict(router.state_dict())
    assert other.fitted
    images = noise(2)
    assert torch.equal(other(images, []).grain, router(images, []).grain)
    fresh = EntropyRouter(0.5, 16)
    other.load_state_dict(fresh.state_dict())
    assert not other.fitted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_thresholds_are_not_rounded_to_half_precision(dtype):
    router, images = EntropyRouter(0.5, 16), noise()
    thresholds, grain = router.fit(images).clone(), router(images, []).grain
    router.register_buffer("count", torch.tensor(3))
    router.register_buffer("nothing", None)
    assert torch.equal(router.to(dtype).thresholds, thresholds) and router.count.dtype == torch.int64
    assert torch.equal(router(images, []).grain, grain)


def test_entropy_router_errors():
    with pytest.raises(ValueError, match="images: expected at least one"):
        EntropyRouter(0.5, 16).fit([])
    with pytest.raises(ValueError, match="thresholds: expected 2 rising"):
        EntropyRouter((0.3, 0.3), 16).set_thresholds([2.0, 1.0])
    with pytest.raises(ValueError, match="thresholds: expected 1 rising"):
        EntropyRouter(0.5, 16).set_thresholds([float("nan")])
    with pytest.raises(ValueError, match="images: expected at least one"):
        EntropyRouter(0.5, 16).fit(noise()[:0])
    images = noise()
    images[1, 0, 0, 0] = torch.nan  # it would count as the region with the most detail
    with pytest.raises(ValueError, match="images: expected finite"):
        EntropyRouter(0.5, 16).fit(images)


@pytest.mark.parametrize("ratio", [1.0, (0.3, 0.7), (0.0, 1.0)], ids=str)
def test_all_regions_can_be_fine(ratio):
    """Also where many have the least entropy, as in a drawing."""
    images = noise()
    images[:3] = 0
    router = EntropyRouter(ratio, 16)
    router.fit(images)
    assert router(images, []).grain.min() >= 1


def test_random_router_has_exact_shares_and_a_fixed_pattern_in_evaluation():
    router = RandomRouter((0.2, 0.4))
    maps = pyramid(3)
    grain = router(IMAGES, maps).grain
    assert [torch.bincount(image.flatten()).tolist() for image in grain] == [[6, 3, 6]] * 2
    assert not torch.equal(grain, router(IMAGES, maps).grain)
    router.eval()
    assert torch.equal(router(IMAGES, maps).grain[1], router(IMAGES[:1], [m[:1] for m in maps]).grain[0])


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def other_default(request):
    """Another default dtype, which may be on where models are built."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(default)


def test_the_fixed_pattern_does_not_hang_on_the_default_dtype(other_default):
    maps = pyramid(2)
    found = RandomRouter(0.5).eval()(IMAGES, maps).grain
    torch.set_default_dtype(torch.float32)
    assert torch.equal(found, RandomRouter(0.5).eval()(IMAGES, maps).grain)


def test_thresholds_are_float32_whatever_the_default_dtype(other_default):
    routers = EntropyRouter(0.5, 16), GainRouter(8, 0.5)
    assert all(buffer.dtype == torch.float32 for router in routers for buffer in router.buffers())
    images = noise().float()
    found = routers[0].fit(images)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(found, EntropyRouter(0.5, 16).fit(images))
