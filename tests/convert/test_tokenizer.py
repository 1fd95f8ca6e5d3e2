"""Conversion of tokenizers, against the released model's forward pass (``conftest.py``) and its recording."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dqcore import DQVAE, convert

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
ENTROPY = {
    "target": "modules.dynamic_modules.RouterDual.DualGrainFixedEntropyRouter",
    "params": {"fine_grain_ratito": 0.5},
}
#: Arguments of ``released.official``.
CASES = {
    "dual": {},
    "dual, one layer, no norm": {"router": ("none", "1layer-fc"), "position": "fourier"},
    "dual, wide": {"router": ("group-16", "2layer-fc-SiLu"), "ch": 64, "z_channels": 48, "num_res_blocks": 2},
    "dual, deep": {"ch_mult": (1, 1, 1, 2, 1), "decoder_ch_mult": (1, 1, 2, 1), "resolution": 64},
    "triple": {"kind": "triple"},
    "triple, relu": {"kind": "triple", "router": ("group-8", "2layer-fc-ReLu"), "position": "learned"},
    "entropy": {"router": ENTROPY},
    "entropy, learned-relative": {"router": ENTROPY, "position": "learned-relative"},
}


def assert_same(model, images, expected):
    with torch.no_grad():
        encoding, output = model.encode(images), model(images)
    assert expected["grain"].unique().numel() > 1
    assert torch.equal(encoding.grain, expected["grain"])
    assert torch.equal(encoding.codes, expected["codes"])
    for ours, theirs in (
        (encoding.quantized, expected["quantized"]),
        (output.reconstruction, expected["reconstruction"]),
        (output.commitment_loss, expected["commit_loss"].squeeze()),
    ):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_matches_the_released_forward_pass(released, case):
    config = released.official(**CASES[case])
    images = released.photo(config["resolution"])
    state, expected = released.run(config, images)
    model = convert.dqvae_from_official(state, config)
    assert not model.training
    assert_same(model, images, expected)


def test_bins_of_the_released_checkpoint(released):
    config = released.official(router=ENTROPY)
    images = released.photo(32) + 0.4
    state, expected = released.run(config, images, bins=(0.0, 1.0))
    config["router"]["params"]["bins"] = [0, 1]
    assert_same(convert.dqvae_from_official(state, config), images, expected)


@pytest.mark.skipif(
    not (GOLDEN / "dqvae_dual_feature.config.json").is_file(),
    reason="the recordings of the released code are not part of the repository",
)
def test_matches_the_recording():
    name = "dqvae_dual_feature"
    config = json.loads((GOLDEN / f"{name}.config.json").read_text())
    expected = load_file(GOLDEN / f"{name}.io.safetensors")
    model = convert.dqvae_from_official(convert.load_official(GOLDEN / f"{name}.state.safetensors"), config)
    assert_same(model, expected["image"], expected)
    logits = model.encode(expected["image"]).gate_logits
    torch.testing.assert_close(logits, expected["gate_logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["fourier", "fourier+learned"])
def test_round_trip(released, position):
    config = released.official("triple", position=position)
    state, _ = released.run(config, released.photo(32))
    back = convert.dqvae_to_official(convert.dqvae_from_official(state, config))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("kind", ["dual", "triple"])
def test_training_goes_on_with_the_budget_of_the_preset(released, kind):
    """Their configuration of three granularities weights the budget loss by 1, that of two by 10."""
    config = released.official(kind)
    state, _ = released.run(config, released.photo(32))
    ours, preset = convert.dqvae_from_official(state, config).config, DQVAE.PRESETS[f"dqvae-{kind}"]
    assert (ours.target_ratio, ours.budget_weight) == (preset.target_ratio, preset.budget_weight)


def test_whole_checkpoints(dual):
    state, config = dual
    expected = convert.dqvae_from_official(state, config).state_dict()
    extra = {
        "loss.discriminator.main.0.weight": torch.zeros(1),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1),
    }
    lightning = {"epoch": 3, "state_dict": {**state, **extra}}
    second = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
    stage2 = {"state_dict": {**second, "transformer.pos_emb": torch.zeros(1), "quant_conv.weight": torch.zeros(1)}}
    wrapped = [{f"{before}{name}": tensor for name, tensor in state.items()} for before in ("module.", "_orig_mod.")]
    both = {"model": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}}
    for checkpoint in (lightning, stage2, *wrapped, both):
        converted = convert.dqvae_from_official(checkpoint, config).state_dict()
        assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_every_key_is_used_or_named(dual):
    state, config = dual
    with pytest.raises(ValueError, match=r"has no place for encoder\.extra\.weight"):
        convert.dqvae_from_official({**state, "encoder.extra.weight": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match=r"lacks decoder\.conv_out\.bias, quant_conv\.bias"):
        drop = ("quant_conv.bias", "decoder.conv_out.bias")
        convert.dqvae_from_official({name: t for name, t in state.items() if name not in drop}, config)
    with pytest.raises(ValueError, match=r"state_dict: decoder\.conv_in\.bias would have shape \(3,\)"):
        convert.dqvae_from_official({**state, "decoder.conv_in.bias": torch.zeros(3)}, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "quadruple"}, "kind 'quadruple' is unknown"),
        ({"position_type": "relative"}, "position_type 'relative' is unknown"),
        ({"router": {"target": "modules.Other", "params": {}}}, "router modules.Other is unknown"),
        (
            {"router": {"target": "modules.RouterDual.DualGrainFeatureRouter", "params": {"gate_type": "3layer"}}},
            "gate_type '3layer' is unknown",
        ),
    ],
)
def test_unknown_configuration(dual, changes, message):
    with pytest.raises(ValueError, match=f"config: {message}"):
        convert.dqvae_from_official(dual[0], {**dual[1], **changes})


def test_incomplete_configuration(dual):
    config = {name: value for name, value in dual[1].items() if name != "ch_mult"}
    with pytest.raises(ValueError, match="config: ch_mult is missing"):
        convert.dqvae_from_official(dual[0], config)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("router", "entropy", "router: expected a mapping, got 'entropy'"),
        ("router", {"target": 3}, "router: expected the path of a class as its target, got 3"),
        ("router", {"target": "FeatureRouter", "params": [1]}, "params: expected a mapping, got"),
        ("ch_mult", None, "ch_mult: expected a list of whole numbers from 1 up, got None"),
        ("ch_mult", [], "ch_mult and decoder_ch_mult: expected at least one number each"),
        ("decoder_attn_resolutions", 16, "decoder_attn_resolutions: expected a list"),
        ("resolution", "32", "resolution: expected a whole number from 1 up, got '32'"),
        ("kind", [], r"kind \[\] is unknown"),
        ("position_type", {}, "position_type {} is unknown"),
    ],
)
def test_settings_of_another_kind_are_named(dual, name, value, expected):
    with pytest.raises(ValueError, match=f"config: {expected}"):
        convert.dqvae_from_official(dual[0], {**dual[1], name: value})
    with pytest.raises(ValueError, match="config: expected a mapping of settings, got NoneType"):
        convert.dqvae_from_official(dual[0], None)


def test_thresholds(released, tmp_path):
    config = released.official(router=ENTROPY)
    state, _ = released.run(config, released.photo(32))
    params = config["router"]["params"]
    threshold = params.pop("threshold")
    assert not convert.dqvae_from_official(state, config).router.fitted
    config["fine_grain_threshold"] = threshold
    torch.testing.assert_close(convert.dqvae_from_official(state, config).router.thresholds.item(), threshold)
    config["fine_grain_threshold"] = [threshold]
    torch.testing.assert_close(convert.dqvae_from_official(state, config).router.thresholds.item(), threshold)
    del config["fine_grain_threshold"]
    params["json_path"] = str(tmp_path / "thresholds.json")
    with pytest.raises(FileNotFoundError, match=r"thresholds\.json: no such thresholds file"):
        convert.dqvae_from_official(state, config)
    (tmp_path / "thresholds.json").write_text(json.dumps({str(p): p / 100 for p in range(1, 100)}))
    for ratio, expected in ((0.5, 0.5), (0.55, 0.45), (0.3, 0.7)):
        params["fine_grain_ratito"] = ratio
        router = convert.dqvae_from_official(state, config).router
        assert router.thresholds.item() == pytest.approx(expected)
        assert router.ratio == (ratio,)
    params["thresholds"] = {"70": 1.25}
    assert convert.dqvae_from_official(state, config).router.thresholds.item() == 1.25
    params["fine_grain_ratito"] = 0.5
    with pytest.raises(ValueError, match="config: there is no threshold for percentile 50"):
        convert.dqvae_from_official(state, config)
    for wrong in ([1.0, 2.0], [], "much", [[1.0]]):
        params["thresholds"] = wrong
        with pytest.raises(ValueError, match="config: expected one threshold, a number in nats, got "):
            convert.dqvae_from_official(state, config)


def test_to_official_rejects_what_they_do_not_have():
    with pytest.raises(ValueError, match="model: expected two or three granularities, 32 groups"):
        convert.dqvae_to_official(DQVAE.from_preset("dqvae-dual-tiny"))
    sizes = {"channels": 32, "latent_channels": 32, "groups": 32}
    for changes in ({"router": "gain"}, {"linear_path": True}, {"middle_attention": False}):
        with pytest.raises(ValueError, match="model: expected stem 1, no linear path, attention in the middle and no"):
            convert.dqvae_to_official(DQVAE.from_preset("dqvae-dual-tiny", **sizes, **changes))
