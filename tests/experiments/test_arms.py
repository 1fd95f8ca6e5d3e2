"""Arms: one name and seed is one run, in whichever experiments; twins have the widths of what they stand beside."""

import dataclasses
from pathlib import Path

import pytest

from dqcore.experiments import EXPERIMENTS, SCALES, priors
from dqcore.experiments.arms import dual, fixed, prior, triple, with_needs
from dqcore.experiments.ratios import TRIPLES
from dqcore.experiments.train import new_tokenizer
from dqcore.models.auto import PRIORS, kind_of_preset
from dqcore.models.tokenizers.config import TokenizerConfig


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_one_name_and_seed_is_one_run_everywhere(scale):
    known = {}
    for experiment in EXPERIMENTS.values():
        for arm in with_needs(experiment.arms(scale, 2)):
            assert known.setdefault(arm.key, arm.as_json()) == arm.as_json()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_has_every_seed(name):
    arms = EXPERIMENTS[name].arms(SCALES["cpu"], 3)
    names = {arm.name for arm in arms}
    assert len(names) > 2 and len(arms) == 3 * len(names)
    assert {(arm.name, arm.seed) for arm in arms} == {(name, seed) for name in names for seed in range(3)}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("stride", [16, 8])
def test_a_twin_differs_by_its_stride_alone(scale, stride):
    ours, twin = (new_tokenizer(arm).config for arm in (dual(scale, 0, "feature"), fixed(scale, 0, stride)))
    assert twin.strides == (stride,)
    free = {"strides", "encoder_multipliers", "decoder_multipliers"}
    for field in dataclasses.fields(TokenizerConfig):
        assert field.name in free or getattr(twin, field.name) == getattr(ours, field.name), field.name
    assert ours.encoder_multipliers[: len(twin.encoder_multipliers)] == twin.encoder_multipliers
    assert twin.decoder_multipliers[: len(ours.decoder_multipliers)] == ours.decoder_multipliers


def test_the_small_twins_are_the_presets():
    assert all(fixed(SCALES["cpu"], 0, stride).model == {} for stride in (16, 8))


def test_arms_have_what_their_names_say():
    scale = SCALES["cpu"]
    config = new_tokenizer(dual(scale, 0, "entropy", 0.3, 100)).config
    assert (config.router, config.target_ratio, config.budget_weight) == ("entropy", (0.3,), 100)
    config = new_tokenizer(triple(scale, 0, (0.625, 0.075))).config
    assert config.strides == (32, 16, 8) and config.target_ratio == (0.625, 0.075) and config.router == "feature"


@pytest.mark.parametrize(("shares", "codes"), list(zip(TRIPLES, (409.6, 256), strict=True)))
def test_triples_have_the_papers_mean_number_of_codes(shares, codes):
    """Of an image of 256 pixels, which has 64 regions of stride 32."""
    share_of_16, share_of_8 = shares
    assert 64 * (1 + 3 * share_of_16 + 15 * share_of_8) == pytest.approx(codes)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_priors_are_of_equal_size(scale):
    arms = [arm for arm in EXPERIMENTS["priors"].arms(scale, 1)]
    layers = []
    for arm in arms:
        config = kind_of_preset(arm.preset, PRIORS, "prior").PRESETS[arm.preset]
        layers.append(sum(value for name, value in dataclasses.asdict(config).items() if name.endswith("_layers")))
    assert len(set(layers)) == 1
    sums = {sum(pair) for pair in scale.layers}
    assert len(sums) == 1


def test_needs_come_first_and_once():
    scale = SCALES["cpu"]
    tokenizer = dual(scale, 0, "feature")
    arms = [prior(scale, design, tokenizer) for design in ("dqtransformer", "global-local")]
    assert [arm.name for arm in with_needs([*arms, tokenizer])] == ["feature-r0.5", "dqtransformer", "global-local"]


def test_a_seed_decides_the_weights():
    scale = SCALES["cpu"]
    first, again, other = (new_tokenizer(dual(scale, seed, "gain")).encoder.conv_in.weight for seed in (0, 0, 1))
    assert first.equal(again) and not first.equal(other)


def test_the_photos_that_priors_are_compared_with_are_a_random_choice():
    """Not the first by name; for each seed others, and the same for all designs."""
    photos = [Path(f"{index:03d}.png") for index in range(100)]
    some = priors.reference(photos, 10, 0)
    assert len(set(some)) == 10 and some == sorted(some) == priors.reference(photos, 10, 0)
    assert some != photos[:10] and priors.reference(photos, 10, 1) != some
    assert len(priors.reference(photos, 1, 0)) == 2 and priors.reference(photos, 200, 0) == photos
