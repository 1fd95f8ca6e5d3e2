"""Numbers of held-out images: of all of them together, however they are shared out."""

import itertools

import pytest
import torch

from dqcore.distributed import ALONE
from dqcore.models.priors import DQTransformer, GlobalLocal, RasterDynamic
from dqcore.ops import pack_codes
from dqcore.training.prior.step import PriorStep, measure

SIZES = {"codebook_size": 9, "region_grid": (2, 2), "dropout": 0.0, "dim": 16, "num_heads": 2}


@pytest.mark.parametrize(
    ("kind", "preset"),
    [(DQTransformer, "dqtransformer-tiny"), (RasterDynamic, "raster-dynamic-tiny"), (GlobalLocal, "global-local-tiny")],
)
def test_batches_do_not_matter(kind, preset):
    torch.manual_seed(0)
    model = kind.from_preset(preset, **SIZES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    grain = torch.tensor([[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [1, 1]]])  # two images have no fine code
    codes = torch.randint(9, (3, 2, 2)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    sequence, step = pack_codes(codes, grain, num_granularities=2), PriorStep(model, ALONE)
    expected = {f"val_{name}": float(value) for name, value in measure(model.eval()(sequence), 3, 2).items()}
    for cuts in ([0, 3], [0, 2, 3], [0, 1, 2, 3]):
        parts = [sequence[start:stop] for start, stop in itertools.pairwise(cuts)]
        batches = [(part, None, len(part)) for part in parts]
        assert step.validate(model, [*batches, (sequence[:1], None, 0)]) == pytest.approx(expected, rel=1e-5)
