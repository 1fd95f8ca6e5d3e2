import pytest
import torch
from processes import launch
from torch.optim.swa_utils import AveragedModel

from dqcore.nn.gain import GainRouter, _threshold_of
from dqcore.training.average import WeightAverage


def pyramid(granularities, batch=4, dim=6, height=3, width=5):
    return [torch.randn(batch, dim, height * 2**g, width * 2**g) for g in range(granularities)]


def images_for(maps, stride=8):
    batch, _, height, width = maps[0].shape
    return torch.randn(batch, 3, height * stride, width * stride)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, (0.3, 0.3), (0.075, 0.625), (0.0, 0.0), (0.0, 1.0)])
def test_a_training_batch_has_the_target_shares_as_a_whole(ratio):
    granularities = len(ratio) + 1 if isinstance(ratio, tuple) else 2
    router = GainRouter(6, ratio)
    maps = pyramid(granularities, batch=4, height=10, width=10)
    grain = router(images_for(maps), maps).grain
    for g, share in enumerate(router.ratio, start=1):
        assert abs((grain == g).double().mean() - share) <= 1 / grain.numel()


def test_images_share_a_batch_by_their_needs():
    router = GainRouter(6, 0.5)
    maps = pyramid(2, batch=2, height=8, width=8)
    maps[1][0] = 0  # nothing to refine here, much there
    images = images_for(maps)
    optimizer = torch.optim.Adam(router.parameters(), 1e-2)
    for _ in range(60):
        routing = router(images, maps)
        loss = (routing.gains[0] + 1).square().mean() + (routing.gains[1] - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert router(images, maps).grain.flatten(1).sum(1).tolist() == [0, 64]


@pytest.mark.parametrize("ratio", [0.3, (0.3, 0.3)])
def test_evaluation_goes_by_the_thresholds_of_training(ratio):
    granularities = len(ratio) + 1 if isinstance(ratio, tuple) else 2
    router = GainRouter(6, ratio, momentum=0.2)
    for _ in range(40):
        maps = pyramid(granularities, batch=8, height=8, width=8)
        router(images_for(maps), maps)
    router.eval()
    maps = pyramid(granularities, batch=32, height=8, width=8)
    images = images_for(maps)
    routing = router(images, maps)
    assert torch.equal(router(images[:1], [values[:1] for values in maps]).grain, routing.grain[:1])
    assert abs((routing.grain > 0).double().mean() - sum(router.ratio)) < 0.05
    scores = router.refinement_scores(routing)
    assert torch.equal((scores > 0).sum(1), routing.grain)
    assert (scores[:, 1:] + router.thresholds.double()[1:, None, None] <= scores[:, :1] + router.thresholds[0]).all()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, (0.3, 0.3), (0.0, 0.0), (0.5, 0.0)])
def test_settled_thresholds_give_the_target_shares(ratio):
    granularities = len(ratio) + 1 if isinstance(ratio, tuple) else 2
    router = GainRouter(6, ratio).eval()
    batches = [pyramid(granularities, batch=2, height=height, width=9) for height in (5, 8, 13)]
    images = [images_for(maps) for maps in batches]
    router.settle([router(x, maps).gains for x, maps in zip(images, batches, strict=True)])
    grains = torch.cat([router(x, maps).grain.flatten() for x, maps in zip(images, batches, strict=True)])
    for g in range(1, granularities):
        assert abs((grains >= g).double().mean() - sum(router.ratio[g - 1 :])) <= 1 / len(grains)


def test_before_training_each_image_has_the_target_share():
    router = GainRouter(6, 0.25).eval()
    maps = pyramid(2, height=4, width=4)
    assert router(images_for(maps), maps).grain.flatten(1).sum(1).tolist() == [4] * 4


def test_a_region_that_is_not_worth_a_first_refinement_gets_no_second():
    gains = torch.arange(32.0).view(1, 1, 4, 8).repeat(1, 2, 1, 1)
    gains[0, 1, 0, 0] = 100
    for router in (fresh := GainRouter(6, (0.25, 0.25)).eval()), settled(fresh, gains):
        grain = router._settled_grain(gains)
        assert torch.bincount(grain.flatten()).tolist() == [16, 8, 8] and grain[0, 0, 0] == 0


def settled(router, gains):
    other = GainRouter(6, router.ratio).eval()
    other.settle([gains])
    return other


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_dtype(dtype):
    """A tokenizer may be read in half precision: its router then takes maps and images of it."""
    router = GainRouter(6, 0.3)
    maps = pyramid(2, height=10, width=10)
    images = images_for(maps)
    router(images, maps)
    thresholds, expected = router.thresholds.clone(), router.eval()(images, maps)
    router.to(dtype)
    assert torch.equal(router.thresholds, thresholds.to(router.thresholds.dtype))
    found = router(images.to(dtype), [values.to(dtype) for values in maps])
    assert found.gains.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    torch.testing.assert_close(found.gains.float(), expected.gains, atol=0.02, rtol=0)
    assert (found.grain != expected.grain).float().mean() < 0.1
    routing = router.train()(images.to(dtype), [values.to(dtype) for values in maps])
    router.loss(routing, images, images + 1, lambda some, grain: images[some]).backward()


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="an older PyTorch compiles it in parts, or again")
def test_evaluation_is_one_graph_before_and_after_training():
    """The thresholds decide what the graph gives, not which graph it is."""
    router, trained = (GainRouter(6, (0.3, 0.3)).eval() for _ in range(2))
    maps = pyramid(3, height=4, width=4)
    images = images_for(maps)
    trained.load_state_dict(router.state_dict())
    trained.settle([torch.randn(4, 2, 4, 4)])
    compiled = torch.compile(router, fullgraph=True, backend="eager")
    assert torch.equal(compiled(images, maps).grain, router(images, maps).grain)
    router.load_state_dict(trained.state_dict())
    with torch.compiler.set_stance("fail_on_recompile"):
        grain = compiled(images, maps).grain
    assert torch.equal(grain, trained(images, maps).grain)
    assert not torch.equal(grain, GainRouter._settled_grain(GainRouter(6, (0.3, 0.3)), trained(images, maps).gains))


def test_a_moving_average_has_the_thresholds_of_its_model():
    model = torch.nn.ModuleList([GainRouter(6, 0.25)])
    average = WeightAverage(model, 0.5)
    maps = pyramid(2, height=4, width=4)
    images = images_for(maps)
    assert average.module[0](images, maps).grain.flatten(1).sum(1).tolist() == [4] * 4
    model[0].settle([torch.full((1, 1, 4, 4), -10.0)])
    average.update_parameters(model)
    assert average.module[0](images, maps).grain.all()


def test_only_the_router_learns_from_its_loss():
    router = GainRouter(6, 0.5)
    maps = [values.requires_grad_() for values in pyramid(2)]
    images = images_for(maps).requires_grad_()
    routing = router(images, maps)
    decoded = images + torch.randn_like(images, requires_grad=True)
    router.loss(routing, images, decoded, lambda some, grain: decoded[some] * 0.5).backward()
    assert all(values.grad is None for values in (*maps, images))
    assert all(parameter.grad.any() for parameter in router.parameters())


def test_steps_that_try_no_region_leave_the_scale_alone():
    """Three of four steps on images of one region."""
    torch.manual_seed(1)
    router = GainRouter(6, 0.5)
    for _ in range(60):
        maps = pyramid(2, batch=1, height=1, width=1)
        images = images_for(maps)
        loss = router.loss(router(images, maps), images, images + 1, lambda some, grain, x=images: x[some])
        assert loss.isfinite()
    # Every try gains or loses an error of 1 by three codes.
    assert float(router.scale) == pytest.approx(3**-0.5)


@pytest.mark.parametrize("ratio", [0.5, (0.3, 0.3)])
def test_it_learns_what_a_finer_region_gains(ratio):
    """The error of a region is its spread at granularity 0, a quarter at 1, a sixteenth at 2: all there is to know."""
    torch.manual_seed(0)
    granularities = len(ratio) + 1 if isinstance(ratio, tuple) else 2
    router = GainRouter(6, ratio)
    optimizer = torch.optim.Adam(router.parameters(), 3e-3)
    for _ in range(250):
        maps, images, spread = task(granularities)
        routing = router(images, maps)

        def reconstruct(some, grain, images=images, spread=spread):
            error = (spread[some] / 4.0**grain).repeat_interleave(8, 1).repeat_interleave(8, 2)
            return images[some] + error.sqrt()[:, None]

        loss = router.loss(routing, images, reconstruct(slice(None), routing.grain), reconstruct)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    maps, images, spread = task(granularities)
    gains = router.eval()(images, maps).gains
    for g in range(granularities - 1):
        predicted, true = gains[:, g].flatten(), spread.flatten()
        ranks = [values.argsort().argsort().double() for values in (predicted, true)]
        assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.9


def task(granularities):
    spread = torch.rand(16, 4, 4)
    maps = [torch.randn(16, 6, 4 * 2**g, 4 * 2**g) for g in range(granularities)]
    last = spread.repeat_interleave(2 ** (granularities - 1), 1).repeat_interleave(2 ** (granularities - 1), 2)
    maps[-1] = maps[-1] * last[:, None]
    return maps, torch.randn(16, 3, 32, 32), spread


def test_a_threshold_is_that_of_the_chosen_values_alone():
    """As if the others were not there, with ties and where none is chosen."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(-2, 3, (9,), generator=generator).float()
        among = torch.rand(9, generator=generator) < seed / 39
        ordered = values[among].sort(descending=True).values
        for number in range(10):
            if not len(ordered):
                expected = 0.0
            elif number == 0 or number >= len(ordered):
                expected = float(ordered[0] if number == 0 else ordered[-1] - 1)
            else:
                expected = float(ordered[number - 1] + ordered[number]) / 2
            assert float(_threshold_of(values, among, number)) == expected


TWO = """
import torch
import torch.distributed as dist
from dqcore.nn.gain import GainRouter

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
router, rank = GainRouter(6, 0.3), dist.get_rank()
images, maps = torch.randn(7, 3, 16, 16), [torch.randn(7, 6, 2, 2), torch.randn(7, 6, 4, 4)]
part = slice(0, 2) if rank == 0 else slice(2, 7)
grain = router(images[part], [values[part] for values in maps]).grain
found = [None, None]
dist.all_gather_object(found, grain)
assert int(torch.cat(found).sum()) == round(0.3 * 28)
thresholds = router.thresholds.clone()
dist.destroy_process_group()
router.thresholds.fill_(torch.nan)
assert torch.equal(router(images, maps).grain, torch.cat(found)) and torch.equal(router.thresholds, thresholds)
"""


@pytest.mark.slow
def test_processes_with_unequal_parts_share_a_batch():
    for code, _, errors in launch(TWO, size=2):
        assert code == 0, errors


@pytest.mark.parametrize("too_early", [False, True])
def test_an_average_takes_thresholds_in_from_its_first_update_on(too_early):
    """It may be made at any time; that its first update copies a NaN is PyTorch's, and stands in the documentation."""
    router = GainRouter(4, 0.5).train()
    average = AveragedModel(router, use_buffers=True)
    if too_early:
        average.update_parameters(router)
    for _ in range(2):
        router(torch.randn(2, 3, 32, 32), [torch.randn(2, 4, 2, 2), torch.randn(2, 4, 4, 4)])
        average.update_parameters(router)
    assert bool(average.module.thresholds.isnan().any()) == too_early
