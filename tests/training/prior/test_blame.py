"""Which file a loss that is not finite comes of, in a prior's training."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dqcore.distributed import ALONE
from dqcore.training.prior.stage import PriorStage


class Prior(nn.Module):
    """Its loss is not finite for the images that it is told of."""

    def __init__(self, bad):
        super().__init__()
        self.bad, self.weight = torch.tensor(bad), nn.Parameter(torch.ones(()))

    def forward(self, images, labels):
        loss = self.weight * images.sum()
        return SimpleNamespace(loss=torch.where(torch.isin(images, self.bad).any(), torch.nan, loss))


def stage(bad, names=("a.png", "b.png", "c.png"), sharded=False):
    codes = SimpleNamespace(names=names, classes=(), batch=lambda images: (images, None))
    step = SimpleNamespace(sharded=sharded, model=Prior(bad))
    return PriorStage(None, ALONE, codes, None, None, None, step)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([2], "it comes of c.png"),
        ([4, 2], "it comes of b.png, c.png"),  # image 4 is another view of file 1
        ([9], "no image by itself gives that"),
        ([0, 4, 2], "every image gives that, so the weights are to blame"),
    ],
)
def test_the_files_are_named(bad, said):
    assert stage(bad).blame(torch.tensor([0, 4, 2])) == said


def test_codes_without_files_are_numbered_and_shards_are_not_searched():
    assert stage([4], names=()).blame(torch.tensor([0, 4])) == "it comes of image 4"
    assert stage([4], sharded=True).blame(torch.tensor([0, 4])).startswith("of a sharded run")
