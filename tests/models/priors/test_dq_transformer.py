"""DQ-Transformer: its size, its losses, its labels, and what it says about mistakes."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dqcore
from dqcore.models.priors.dq_transformer import DQTransformer, DQTransformerConfig

GRID = (3, 4)
SMALL = {"codebook_size": 20, "region_grid": GRID, "dim": 32, "num_heads": 2, "max_steps": 220}


@pytest.mark.parametrize(
    ("preset", "classes", "count"),
    [
        ("dqtransformer-base", 0, 308_884_480),
        ("dqtransformer-large", 0, 611_193_856),
        ("dqtransformer-base", 1000, 313_999_360),
        ("dqtransformer-large", 1000, 616_308_736),
    ],
)
def test_parameters(preset, classes, count):
    with torch.device("meta"):
        model = DQTransformer.from_preset(preset, num_classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_position_loss_is_the_mean_over_granularities(new, spread, sequence):
    model = spread(new(granularities=3)).eval()
    out = model(sequence(3, 3))
    losses = F.cross_entropy(out.position_logits, out.targets.columns, reduction="none")
    parts = [losses[out.targets.grains == g].mean() for g in range(3)]
    torch.testing.assert_close(out.position_loss, sum(parts) / 3)
    torch.testing.assert_close(out.loss, out.position_loss + out.content_loss)


def test_activation_checkpointing_changes_nothing(new, sequence):
    gradients = []
    for on in (False, True):
        torch.manual_seed(1)
        model = new(dropout=0.3).train()
        model.checkpoint_activations(on)
        torch.manual_seed(2)
        batch = sequence()
        model(batch).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_labels_are_dropped_in_training_only(new, spread, sequence):
    model = spread(new(num_classes=4, label_dropout=0.5))
    batch = sequence(64)
    labels = torch.arange(64) % 4
    starts = model.train()(batch, labels).targets.contents
    starts = starts[starts >= 22].tolist() + [20] * int((starts == 20).sum())
    assert 10 < starts.count(20) < 54  # 20, padding, stands for no class
    model.eval()
    assert int((model(batch, labels).targets.contents == 20).sum()) == 0
    assert int((model(batch, torch.full_like(labels, -1)).targets.contents == 20).sum()) == 64


def test_compiles(new, sequence):
    model = new().eval()
    batch = sequence()
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(batch).content_logits, model(batch).content_logits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, sequence: m("codes"), "sequence: expected a CodeSequence"),
        (lambda m, sequence: m(sequence(1, 3)), "num_granularities 2"),
        (lambda m, sequence: m(sequence(1, 2, (4, 4))), "region_grid"),
        (lambda m, sequence: m(sequence(0)), "sequence: expected at least one image"),
        (lambda m, sequence: m(dataclasses.replace(s := sequence(1), codes=s.codes.clamp(20))), r"codes in \[0, 20\)"),
        (lambda m, sequence: m(dataclasses.replace(s := sequence(1), codes=s.codes - 20)), r"codes in \[0, 20\)"),
        (lambda m, sequence: m(sequence(), torch.zeros(3, dtype=torch.int64)), "labels: expected None"),
        (lambda m, sequence: m.generate(0), "batch_size"),
        (lambda m, sequence: m.generate(1, closed=2), "closed"),
        (lambda m, sequence: m.generate(1, stop_after=2), "stop_after"),
        (lambda m, sequence: m.generate(2, given=sequence(1)), "given: expected 2 images"),
        (lambda m, sequence: m.generate(1, temperature=0.0), "temperature"),
        (lambda m, sequence: m.generate(1, slots=0), "slots: expected at least 1 and whole, got 0"),
        (lambda m, sequence: m.generate(1, slots=1.5), "slots: expected at least 1 and whole, got 1.5"),
        (lambda m, sequence: m.generate(1, seed=1.5), "seed: expected an integer, got 1.5"),
        (lambda m, sequence: m.generate(1, first=2**63), "first: expected an integer of 64 bits, got"),
    ],
)
def test_wrong_arguments_are_named(call, message, new, sequence):
    with pytest.raises((ValueError, TypeError), match=message):
        call(new(), sequence)


def test_whole_numbers_of_numpy_are_whole_numbers(new, spread):
    model, wide = spread(new(num_classes=4)).eval(), np.int64
    drawn = model.generate(wide(3), wide(2), seed=wide(5), first=wide(1), slots=wide(2), top_k=wide(9))
    assert drawn == model.generate(3, 2, seed=5, first=1, slots=2, top_k=9)
    assert model.generate(1, 2, seed=wide(-5)) == model.generate(1, 2, seed=-5)
    farthest = [model.generate(1, 2, first=first) for first in (-(2**63), 2**63 - 1)]
    assert farthest[0] != farthest[1]


def test_half_covered_regions_are_refused(new):
    whole = new().generate(1, seed=0)
    ends = torch.tensor([0, len(whole.codes) - 1], dtype=torch.int32)
    part = dqcore.CodeSequence(whole.codes[:-1], whole.positions[:-1], whole.grains[:-1], ends, GRID, 2)
    with pytest.raises(ValueError, match="given: expected whole regions"):
        new().generate(1, given=part)


@pytest.mark.parametrize(
    "labels", [None, torch.tensor([4, 0, 0]), torch.zeros(2, dtype=torch.int64), torch.rand(3), [0, 1, 2]]
)
def test_wrong_labels_are_named(labels, new, sequence):
    with pytest.raises((ValueError, TypeError), match="labels"):
        new(num_classes=4)(sequence(), labels)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": 50},
        {"num_heads": 5},
        {"dropout": 1.0},
        {"label_dropout": 0.1},
        {"region_grid": (0, 4)},
        {"position_layers": 0},
        {"content_layers": 0},
    ],
)
def test_wrong_configs_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DQTransformer(DQTransformerConfig(**(SMALL | {"position_layers": 1, "content_layers": 1} | wrong)))


def test_images_of_one_region(new, sequence):
    batch = sequence(3, 2, (1, 1))
    model = new(region_grid=(1, 1), max_steps=7)  # two starts, four codes and an end: the last end is not read
    assert model(batch).content_logits.shape[0] == int(batch.lengths.sum()) + 3 * 3
    assert int(model.generate(4, seed=1).lengths.min()) in (1, 4)
