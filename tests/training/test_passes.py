"""How often a step of training goes over weights and gradients beside its network's own passes."""

import collections

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


class OverLists(TorchDispatchMode):
    """Counts the operations over lists of tensors."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.counts[name] += name.startswith(("_foreach", "_fused"))
        return func(*args, **(kwargs or {}))


def prior_step(limit):
    model = DQTransformer.from_preset("dqtransformer-tiny", codebook_size=9, region_grid=(2, 2), dim=16, num_heads=2)
    step = PriorStep(model, ALONE, gradient_clip=limit)
    sequence = pack_codes(torch.randint(9, (2, 4, 4)), torch.ones(2, 2, 2, dtype=torch.int64), num_granularities=2)
    return lambda: step(sequence, None, 0, 1e-4)


def tokenizer_step(limit):
    model, adversary = DQVAE.from_preset("dqvae-dual-tiny", **SIZES), PatchDiscriminator(4)
    step = TokenizerStep(model, ALONE, LossWeights(gradient_clip=limit), discriminator=adversary)
    return lambda: step(torch.rand(2, 3, 32, 32) * 2 - 1, 0, 1e-5)


@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize(("new_step", "update"), [(prior_step, "_fused_adamw_"), (tokenizer_step, "_fused_adam_")])
def test_weights_are_updated_in_one_pass_and_gradients_scaled_only_to_be_clipped(new_step, update, limit):
    train = new_step(limit)
    with OverLists() as over:
        train()
    expected = {"_foreach_norm": 1, update: 2, "_foreach_add_": 2}  # the sums count steps
    if limit is not None:
        expected["_foreach_mul_"] = 1
    assert +over.counts == expected
