"""Small priors of every kind, code sequences for them, and a saved tokenizer."""

import pytest
import torch

import dqcore
from dqcore import DQVAE
from dqcore.models.priors.dq_transformer import DQTransformer
from dqcore.models.priors.global_local import GlobalLocal
from dqcore.models.priors.raster import Raster, RasterDynamic

GRID = (3, 4)
SMALL = {"codebook_size": 20, "region_grid": GRID, "dim": 32, "num_heads": 2, "max_steps": 220}
PRIORS = {
    "dq": (DQTransformer, "dqtransformer-tiny"),
    "dynamic": (RasterDynamic, "raster-dynamic-tiny"),
    "raster": (Raster, "raster-tiny"),
    "global-local": (GlobalLocal, "global-local-tiny"),
}


def _new(kind="dq", granularities=2, **changes):
    model, preset = PRIORS[kind]
    return model.from_preset(preset, **(SMALL | {"num_granularities": granularities} | changes))


def _spread(model):
    for name, parameter in model.named_parameters():
        if "norm" not in name and "head.0" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    if isinstance(model, GlobalLocal):
        with torch.no_grad():
            model.content_embedding.weight[model.config.codebook_size].zero_()
    return model


def _sequence(batch=3, granularities=2, grid=GRID):
    grain = torch.randint(0, granularities, (batch, *grid))
    codes = torch.randint(0, 20, (batch, *(side << granularities - 1 for side in grid)))
    return dqcore.pack_codes(codes, grain, num_granularities=granularities)


@pytest.fixture
def new():
    """``new(kind, granularities, **changes)``: a prior of 3 x 4 regions and 20 codes."""
    return _new


@pytest.fixture
def spread():
    """``spread(model)``: larger weights, so that logits differ well."""
    return _spread


@pytest.fixture
def sequence():
    """``sequence(batch, granularities)``: random codes of 3 x 4 regions."""
    return _sequence


@pytest.fixture
def saved(tmp_path):
    """A small tokenizer, and the folder that it is saved in."""
    model = DQVAE.from_preset("dqvae-dual-entropy-tiny", commitment=0.5)
    model.router.set_thresholds([1.5])
    model.save_pretrained(tmp_path / "runs" / "model")
    return model, tmp_path / "runs" / "model"
