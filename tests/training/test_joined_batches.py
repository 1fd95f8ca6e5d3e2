"""A batch shared by several processes, or computed in parts, trains as one batch of one process does."""

import dataclasses
import functools
import sys
from pathlib import Path

import pytest
import torch

from dqcore.distributed import ALONE, join_world
from dqcore.models.priors import DQTransformer, GlobalLocal
from dqcore.models.tokenizers.dqvae import DQVAE, DQVAEConfig
from dqcore.nn.discriminator import PatchDiscriminator
from dqcore.ops import pack_codes
from dqcore.training.average import WeightAverage
from dqcore.training.prior.step import PriorStep
from dqcore.training.tokenizer.step import LossWeights, TokenizerStep

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the tests' helpers lie

from processes import launch

SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("joined", sys.argv[1])
joined = importlib.util.module_from_spec(spec)
spec.loader.exec_module(joined)
joined.process(sys.argv[2])
"""
IMAGES, STEPS = 12, 2
CONFIG = DQVAEConfig(
    strides=(8, 4),
    codebook_size=32,
    dim=16,
    latent_channels=16,
    channels=8,
    encoder_multipliers=(1, 1, 2, 2),
    decoder_multipliers=(1, 1, 2),
    encoder_attention=(),
    decoder_attention=(),
    num_blocks=1,
    groups=4,
    router_groups=4,
    resolution=32,
    restart=True,
)


def share(values, world, parts):
    """This process's images of a step: of each part of the batch its run."""
    runs = values.chunk(parts * world.size)
    return torch.cat([runs[part * world.size + world.rank] for part in range(parts)])


def train_tokenizer(config, world, parts):
    """Some steps against a discriminator: the numbers of each, the gradients, and what was learned."""
    torch.manual_seed(1)
    model, adversary = DQVAE(config), PatchDiscriminator(4)
    weights = LossWeights(gradient_clip=1.0)
    average = WeightAverage(model, 0.9)
    step = TokenizerStep(model, world, weights, discriminator=adversary, average=average, accumulate=parts)
    rows = []
    for completed in range(STEPS):
        gen = torch.Generator().manual_seed(completed)
        pixels = torch.rand(IMAGES, 3, 4, 4, generator=gen) * 2 - 1
        images = torch.nn.functional.interpolate(pixels, 32, mode="bilinear")
        rows.append(step(share(images, world, parts), completed, 1e-5))
    gradients = {f"{name} gradient": p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients |= {f"adversary {name} gradient": p.grad for name, p in adversary.named_parameters()}
    adversary_state = {f"adversary {name}": value for name, value in adversary.state_dict().items()}
    return rows, gradients | model.state_dict() | adversary_state


def train_prior(kind, world, parts):
    """Some steps on images of different lengths."""
    torch.manual_seed(1)
    sizes = {"codebook_size": 9, "region_grid": (2, 2), "dropout": 0.0, "dim": 16, "num_heads": 2}
    preset = "dqtransformer-tiny" if kind is DQTransformer else "global-local-tiny"
    model = kind.from_preset(preset, **sizes)
    step = PriorStep(model, world, gradient_clip=1.0, accumulate=parts)
    rows = []
    for completed in range(STEPS):
        gen = torch.Generator().manual_seed(completed)
        codes, grain = torch.randint(9, (IMAGES, 4, 4), generator=gen), torch.randint(2, (IMAGES, 2, 2), generator=gen)
        coarse = codes[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
        codes = torch.where(grain.repeat_interleave(2, 1).repeat_interleave(2, 2) == 0, coarse, codes)
        mine = pack_codes(share(codes, world, parts), share(grain, world, parts), num_granularities=2)
        rows.append(step(mine, None, completed, 1e-5))
    gradients = {f"{name} gradient": p.grad for name, p in model.named_parameters()}
    return rows, gradients | model.state_dict()


def runs(config):
    """What is trained, by name."""
    tokenizers = {router: dataclasses.replace(config, router=router) for router in ("feature", "entropy")}
    found = {name: functools.partial(train_tokenizer, some) for name, some in tokenizers.items()}
    return found | {kind.__name__: functools.partial(train_prior, kind) for kind in (DQTransformer, GlobalLocal)}


def process(folder):
    """What each process does: all runs, its batches whole and in parts."""
    torch.set_num_threads(1)
    torch.Tensor.exponential_ = _no_noise
    world = join_world("cpu")
    for name, run in runs(CONFIG).items():
        for parts in (1, 2):
            torch.save(run(world, parts), f"{folder}/{name}-{parts}-{world.rank}.pt")


def _no_noise(self):
    """In the place of a router's noise, which would differ by process."""
    return self.fill_(1.0)


def check_same(found, expected):
    """All numbers, gradients, parameters, and the codebook with its statistics are equal within float32's rounding."""
    for row, other in zip(found[0], expected[0], strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        difference = (found[1][name].double() - value.double()).nan_to_num()
        if name.endswith("gradient"):  # float32 sums of many terms that nearly cancel
            assert difference.norm() <= 1e-5 * value.double().norm() + 1e-6, name
        else:
            assert difference.abs().max() <= 1e-6 * max(1, float(value.double().nan_to_num().abs().max())), name


@pytest.mark.parametrize("name", ["feature", "entropy", "DQTransformer", "GlobalLocal"])
def test_parts_of_a_batch_train_as_the_whole(name, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "exponential_", _no_noise)
    run = runs(CONFIG)[name]
    check_same(run(ALONE, 3), run(ALONE, 1))


@pytest.mark.slow
def test_processes_train_as_one(tmp_path, monkeypatch):
    """Each in one part, and in two."""
    size = 3
    monkeypatch.setattr(torch.Tensor, "exponential_", _no_noise)
    for code, _, errors in launch(SCRIPT, __file__, tmp_path, size=size):
        assert code == 0 and not errors, errors
    for name, run in runs(CONFIG).items():
        expected = run(ALONE, 1)
        for parts in (1, 2):
            results = [torch.load(tmp_path / f"{name}-{parts}-{rank}.pt") for rank in range(size)]
            check_same(results[-1], expected)
            for key, value in results[0][1].items():
                assert all(torch.equal(value, other[1][key]) for other in results if not value.isnan().any()), key
