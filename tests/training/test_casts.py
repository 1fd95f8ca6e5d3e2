"""Autocast casts a weight once a step, in however many parts its batch comes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dqcore import DQVAE, DQTransformer
from dqcore.distributed import ALONE
from dqcore.nn.discriminator import PatchDiscriminator
from dqcore.ops import pack_codes
from dqcore.training.prior.step import PriorStep
from dqcore.training.tokenizer.step import LossWeights, TokenizerStep

SIZES = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}


class Casts(TorchDispatchMode):
    """Counts the casts of some tensors."""

    def __init__(self, tensors):
        super().__init__()
        self.addresses, self.count = {tensor.data_ptr() for tensor in tensors}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.addresses
        return func(*args, **(kwargs or {}))


def train_tokenizer(parts):
    torch.manual_seed(0)
    model, adversary = DQVAE.from_preset("dqvae-dual-tiny", **SIZES), PatchDiscriminator(4)
    step = TokenizerStep(model, ALONE, LossWeights(autocast=True), discriminator=adversary, accumulate=parts)
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    with Casts([*model.parameters(), *adversary.parameters()]) as casts:
        return step(images, 0, 1e-5), casts.count


def train_prior(parts):
    torch.manual_seed(0)
    sizes = {"codebook_size": 9, "region_grid": (2, 2), "dropout": 0.0, "dim": 16, "num_heads": 2}
    model = DQTransformer.from_preset("dqtransformer-tiny", **sizes)
    step = PriorStep(model, ALONE, autocast=True, accumulate=parts)
    sequence = pack_codes(torch.randint(9, (6, 4, 4)), torch.ones(6, 2, 2, dtype=torch.int64), num_granularities=2)
    with Casts(model.parameters()) as casts:
        return step(sequence, None, 0, 1e-4), casts.count


@pytest.mark.parametrize("train", [train_tokenizer, train_prior])
def test_parts_of_a_batch_share_the_casts(train):
    (whole, expected), (parts, found) = train(1), train(3)
    assert found == expected > 20
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-4)  # numbers of bfloat16, in another order
