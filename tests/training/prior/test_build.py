"""The model of a prior's run, from its options and the codes."""

from types import SimpleNamespace

import pytest

from dqcore.training.prior.build import new_prior
from dqcore.training.prior.options import PriorTraining


def codes(region_grid=(2, 2), num_granularities=2, classes=()):
    numbers = {"codebook_size": 16, "region_grid": region_grid, "num_granularities": num_granularities}
    return SimpleNamespace(**numbers, classes=classes, tokenizer="")


def asked(preset="dqtransformer-tiny", **options):
    return PriorTraining(codes="codes", preset=preset, device="cpu", **options)


@pytest.mark.parametrize(("grid", "granularities"), [((40, 40), 2), ((20, 20), 3)])
def test_a_large_grid_gets_as_many_steps_as_its_longest_sequence_has(grid, granularities):
    """All regions at the finest granularity, and a start and an end for each granularity."""
    config = new_prior(asked(), codes(grid, granularities)).config
    assert config.max_steps == grid[0] * grid[1] * 4 ** (granularities - 1) + 2 * granularities


def test_a_small_grid_keeps_the_presets_steps_and_options_are_taken():
    small, preset = new_prior(asked(), codes()).config, new_prior(asked(), codes((1, 1))).config
    assert small.max_steps == preset.max_steps > 4 * 4 + 4
    config = new_prior(asked(dropout=0.25, position_layers=1, content_layers=3), codes(classes=("a", "b"))).config
    assert (config.dropout, config.position_layers, config.content_layers) == (0.25, 1, 3) and config.num_classes == 2


def test_layers_that_a_preset_lacks_are_refused():
    with pytest.raises(ValueError, match=r"position_layers: preset .* has no such thing"):
        new_prior(asked("raster-tiny", position_layers=1), codes())
