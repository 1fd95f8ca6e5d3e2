"""The layers of a prior, named with its options."""

import pytest
import torch

from dqcore.data.codes import CachedCodes
from dqcore.errors import InputError
from dqcore.training import PriorTraining
from dqcore.training.prior.build import new_prior


def prior(preset, **options):
    maps = [(torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64))]
    codes = CachedCodes.of_maps(maps, [-1], num_granularities=2, codebook_size=8)
    return new_prior(PriorTraining(codes="codes", recipe="small", preset=preset, **options).resolved(), codes)


def test_layers_replace_the_presets():
    config = prior("dqtransformer-tiny", position_layers=1, content_layers=4).config
    assert (config.position_layers, config.content_layers) == (1, 4)
    config = prior("dqtransformer-tiny").config
    assert (config.position_layers, config.content_layers) == (2, 3)


def test_a_prior_without_such_layers_refuses_them():
    with pytest.raises(InputError, match="position_layers: preset global-local-tiny has no such thing"):
        prior("global-local-tiny", position_layers=1)
    with pytest.raises(InputError, match="content_layers: expected a number from 1 to 1000, got 0"):
        prior("dqtransformer-tiny", content_layers=0)
