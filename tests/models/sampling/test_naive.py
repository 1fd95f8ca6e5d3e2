"""The readable specification of sampling against the samplers that are used."""

import dataclasses

import pytest
import torch

import dqcore
from dqcore.models.sampling import naive
from dqcore.models.sampling.settings import Sampling

GRID = (2, 3)
KINDS = [("dq", 2), ("dq", 3), ("dynamic", 2), ("dynamic", 3), ("raster", 1), ("global-local", 2), ("global-local", 3)]
SETTINGS = [
    Sampling(),
    Sampling(temperature=0.7, top_k=6, top_p=0.9, position_temperature=1.5, position_top_k=4, position_top_p=0.8),
    Sampling(guidance=3.0, position_top_k=5),
]


def naive_of(kind):
    return naive.generate_by_region if kind == "global-local" else naive.generate


def settings_of(kind, sampling):
    """Without what a Global-Local prior does not have."""
    if kind != "global-local":
        return sampling
    return dataclasses.replace(sampling, position_temperature=None, position_top_k=None, position_top_p=1.0)


def some_regions(whole, grid):
    """The codes of the upper row of regions."""
    images = torch.arange(len(whole)).repeat_interleave(whole.lengths.long())
    mine = whole.positions // (grid[1] << whole.grains) >> whole.grains < 1
    ends = torch.bincount(images[mine], minlength=len(whole)).cumsum(0)
    fields = [getattr(whole, name)[mine] for name in ("codes", "positions", "grains")]
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).int()
    return dqcore.CodeSequence(*fields, ends, grid, whole.num_granularities)


@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_the_sampler_draws_what_the_specification_says(kind, granularities, sampling, new, spread):
    model = spread(new(kind, granularities, region_grid=GRID, num_classes=3, label_dropout=0.1)).eval()
    sampling, labels = settings_of(kind, sampling), torch.tensor([2, -1, 0])
    drawn = model.sample(3, labels, sampling, seed=7, first=4)
    assert drawn == naive_of(kind)(model, 3, labels, sampling, seed=7, first=4)
    assert len(drawn.codes.unique()) > 5


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_given_codes(kind, granularities, new, spread):
    model = spread(new(kind, granularities, region_grid=GRID)).eval()
    whole = model.generate(3, seed=1)
    given = some_regions(whole, GRID)
    drawn = model.generate(3, seed=2, given=given)
    assert drawn == naive_of(kind)(model, 3, seed=2, given=given)
    assert drawn != whole and some_regions(drawn, GRID) == given


@pytest.mark.parametrize("order", ["row-first", "region-first"])
def test_orders(order, new, spread):
    model = spread(new("dq", 3, region_grid=GRID, order=order)).eval()
    drawn = model.generate(2, seed=3)
    assert drawn == naive.generate(model, 2, seed=3)
    assert drawn.order == order


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_previews_and_what_follows_them(stop, new, spread):
    model = spread(new("dq", 3, region_grid=GRID)).eval()
    preview = model.generate(3, seed=5, stop_after=stop)
    assert preview == naive.generate(model, 3, seed=5, stop_after=stop)
    closed = min(stop + 1, 2)
    finished = model.generate(3, seed=6, given=preview, closed=closed)
    assert finished == naive.generate(model, 3, seed=6, given=preview, closed=closed)
    assert model.generate(2, seed=6, closed=closed) == naive.generate(model, 2, seed=6, closed=closed)


def test_one_label_for_all_samples(new, spread):
    model = spread(new(region_grid=GRID, num_classes=3)).eval()
    assert model.generate(2, 1, seed=1) == naive.generate(model, 2, 1, seed=1)
