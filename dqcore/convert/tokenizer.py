"""The released tokenizer's checkpoints, read into ours and back; ``dqcore.convert`` lists their settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dqcore.convert.official import (
    Rule,
    check_config,
    missing_keys_named,
    official_names,
    state_under,
    translate_state,
)
from dqcore.errors import InputError
from dqcore.models.tokenizers.dqvae import DQVAE, DQVAEConfig
from dqcore.nn.position import Position
from dqcore.nn.router import EntropyRouter, Gate

__all__ = ["dqvae_from_official", "dqvae_to_official"]

#: Their names of the granularities, coarse to fine, by how many there are.
_NAMES = {2: ("coarse", "fine"), 3: ("coarse", "median", "fine")}
#: How many granularities each kind has.
_KINDS = {"dual": 2, "triple": 3}
_GATES: dict[str, Gate] = {"1layer-fc": "linear", "2layer-fc-SiLu": "silu", "2layer-fc-ReLu": "relu"}
_THRESHOLDS = ("threshold", "fine_grain_threshold", "entropy_threshold", "thresholds")
_BINS = ("bins", "entropy_bins")
#: Their constructor makes tables for the two kinds of learned positions, but their forward pass never adds them.
_POSITIONS: dict[str, Position] = {
    "fourier+learned": "fourier+learned",
    "fourier": "fourier",
    "learned": "none",
    "learned-relative": "none",
    "none": "none",
}
#: Tensors of a checkpoint that are not the tokenizer's.
_DROPPED = re.compile(r"^(loss|transformer|permuter)\.|(^|\.)perceptual_loss\.")

#: Our names to theirs; ``{0}`` stands for the name of granularity 0.
_RULES: list[Rule] = [
    (r"^(encoder|decoder)\.levels\.(\d+)\.blocks\.", r"\1.levels.\2.block."),
    (r"^(encoder|decoder)\.levels\.(\d+)\.attentions\.", r"\1.levels.\2.attn."),
    (r"^encoder\.downsamples\.(\d+)\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.upsamples\.(\d+)\.", lambda match: f"decoder.up.{int(match[1]) + 1}.upsample."),
    (r"^encoder\.levels\.", "encoder.down."),
    (r"^decoder\.levels\.", "decoder.up."),
    (r"^encoder\.heads\.(\d+)\.middle\.", r"encoder.mid_{\1}."),
    (r"^encoder\.heads\.(\d+)\.(norm|conv)\.", r"encoder.\2_out_{\1}."),
    (r"^decoder\.middle\.", "decoder.mid."),
    (r"^router\.norms\.(\d+)\.", r"encoder.router.feature_norm_{\1}."),
    (r"^router\.gate\.", "encoder.router.gate."),
    (r"^decoder\.position\.fourier\.", "decoder.position_bias_fourier.lff.ffm.conv."),
    (r"^decoder\.position\.learned\.(row|col)(?:s|umns)$", r"decoder.position_bias_learned.\1_embed.weight"),
    (r"^quantizer\.codebook\.weight$", "quantize.codebook.weight"),
    (r"^quantizer\.codebook\.cluster_size$", "quantize.codebook.cluster_size_ema"),
    (r"^quantizer\.codebook\.embed_sum$", "quantize.codebook.embed_ema"),
    (r"\.block([12])\.", r".block_\1."),
    (r"\.attention\.", ".attn_1."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.proj\.", ".proj_out."),
]
#: What the values of a configuration are.
_SETTINGS = {
    **dict.fromkeys(("ch", "z_channels", "num_res_blocks", "resolution", "codebook_size"), "size"),
    **dict.fromkeys(("ch_mult", "decoder_ch_mult", "encoder_attn_resolutions", "decoder_attn_resolutions"), "sizes"),
    "router": "mapping",
}
#: Tensors of ours that their state does not have.
_OURS = ("router.thresholds", "quantizer.initialised", "quantizer.codebook.idle")


def dqvae_from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any]) -> DQVAE:
    """A :class:`dqcore.DQVAE` with the weights of the authors' model, in evaluation mode.

    Args:
        state_dict: Their names to tensors, or a whole Lightning checkpoint. Losses, perceptual networks and
            transformers in it are dropped; of the second stage's checkpoint ``first_stage_model`` is read.
        config: Their configuration, see :mod:`dqcore.convert`. Keys that are not named there are ignored.

    Raises:
        ValueError: The configuration is incomplete or unknown, or weights are missing, left over or of the wrong shape.
        FileNotFoundError: An entropy router's thresholds file does not exist.
    """
    check_config(config, _SETTINGS)
    state = state_under(state_dict, "first_stage_model.")
    state = {name: tensor for name, tensor in state.items() if not _DROPPED.search(name)}
    with missing_keys_named():
        ours = _config(config, state)
    threshold = _threshold(config) if ours.router == "entropy" else None
    if config.get("position_type") in ("learned", "learned-relative"):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.position_bias.")}
    model = DQVAE(ours)
    own = model.state_dict()
    theirs = {name: tensor for name, tensor in own.items() if name not in _OURS}
    model.load_state_dict({**own, **translate_state(state, theirs, _rules(ours), _reshape)})
    if isinstance(model.router, EntropyRouter) and threshold is not None:
        model.router.set_thresholds([threshold])
    return model.eval()


def dqvae_to_official(model: DQVAE) -> dict[str, Tensor]:
    """The state dict that the authors' code would load; the inverse of :func:`dqvae_from_official`.

    Raises:
        ValueError: Their code has no such model (other than two or three granularities, 32 groups, or their positions;
            a stem, a linear path, no attention in the middle, or a gain router).
    """
    config = model.config
    if config.stem != 1 or config.linear_path or not config.middle_attention or config.router == "gain":
        raise InputError(
            "model: expected stem 1, no linear path, attention in the middle and no gain router, as theirs have"
        )
    if config.num_granularities not in _NAMES or config.groups != 32 or config.position not in _POSITIONS.values():
        raise InputError(
            "model: expected two or three granularities, 32 groups and fourier or fourier+learned position"
        )
    rules, state = _rules(config), dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        if name not in _OURS:
            parts = official_names(name, rules)
            if name.endswith("position.fourier.weight"):
                tensor = tensor[:, :, None, None]
            state.update(zip(parts, tensor.detach().clone().chunk(len(parts)), strict=True))
    return state


def _config(config: Mapping[str, Any], state: Mapping[str, Any]) -> DQVAEConfig:
    encoder, decoder = tuple(config["ch_mult"]), tuple(config["decoder_ch_mult"])
    if not encoder or not decoder:
        raise InputError("config: ch_mult and decoder_ch_mult: expected at least one number each")
    coarsest = 2 ** (len(encoder) - 1)
    number = _look_up("kind", _KINDS, config["kind"])
    strides = tuple(coarsest >> g for g in range(number))
    quant_conv = state.get("quant_conv.weight")
    return DQVAEConfig(
        strides=strides,
        codebook_size=config["codebook_size"],
        dim=config["z_channels"] if quant_conv is None else len(quant_conv),
        latent_channels=config["z_channels"],
        channels=config["ch"],
        encoder_multipliers=encoder,
        decoder_multipliers=decoder,
        encoder_attention=_attention(len(encoder), config["resolution"], config["encoder_attn_resolutions"]),
        decoder_attention=_attention(len(decoder), config["resolution"], config["decoder_attn_resolutions"]),
        num_blocks=config["num_res_blocks"],
        position=_look_up("position_type", _POSITIONS, config.get("position_type", "fourier+learned")),
        resolution=config["resolution"],
        commitment=config.get("commitment_beta", 0.25),
        **_router(config, number),
    )


def _rules(config: DQVAEConfig) -> list[Rule]:
    """Our names to theirs under one configuration."""
    names = _NAMES[config.num_granularities]
    rules = [*_RULES, *((rf"\{{{g}\}}", name) for g, name in enumerate(names))]
    if config.gate == "linear":
        rules.append((r"router\.gate\.0\.", "router.gate."))
    if config.position == "fourier":
        rules.append((r"position_bias_fourier\.", "position_bias."))
    return [*rules, (r"^(.*)\.qkv\.(\w+)$", r"\1.q.\2|\1.k.\2|\1.v.\2")]


def _attention(num_levels: int, resolution: int, resolutions: Any) -> tuple[int, ...]:
    """The strides at which there is attention; theirs are the resolutions of feature maps."""
    return tuple(2**level for level in range(num_levels) if resolution // 2**level in tuple(resolutions))


def _router(config: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The router's part of our configuration, for this number of granularities."""
    target, params = config["router"]["target"], config["router"].get("params", {})
    check_config(config["router"], {"params": "mapping"})
    if not isinstance(target, str):
        raise InputError(f"config: router: expected the path of a class as its target, got {target!r}")
    kind = target.rpartition(".")[2]
    ratio, weight = {2: ((0.5,), 10.0), 3: ((0.3, 0.3), 1.0)}[number]  # of the budget loss in their YAML files
    if kind.endswith("FeatureRouter"):
        norm = str(params.get("normalization_type", "none"))
        groups = 0 if norm == "none" else int(norm.rpartition("-")[2])
        gate = _look_up("gate_type", _GATES, params.get("gate_type", "1layer-fc"))
        budget = {"target_ratio": ratio, "budget_weight": weight}
        return {"router": "feature", "gate": gate, "router_groups": groups, **budget}
    if kind == "DualGrainFixedEntropyRouter" and number == 2:
        bins = _first(_BINS, params, config) or (-1.0, 1.0)
        return {"router": "entropy", "entropy_bins": tuple(map(float, bins)), "target_ratio": (_fine_ratio(params),)}
    raise InputError(f"config: router {target} is unknown, expected a FeatureRouter or DualGrainFixedEntropyRouter")


def _fine_ratio(params: Mapping[str, Any]) -> float:
    """Share of fine regions that the threshold is for; the first key is their spelling."""
    return float(params.get("fine_grain_ratito", params.get("fine_grain_ratio", 0.5)))


def _threshold(config: Mapping[str, Any]) -> float | None:
    """The entropy router's threshold in nats; None where the configuration has none, and it must be fitted."""
    params = config["router"].get("params", {})
    value = _first(_THRESHOLDS, params, config)
    path = params.get("json_path")
    if value is None and path is not None:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such thresholds file; give threshold (nats), or no json_path and fit")
        value = json.loads(Path(path).read_text())
    if isinstance(value, Mapping):
        percentile = str(round(100 - 100 * _fine_ratio(params)))
        if percentile not in value:
            raise InputError(f"config: there is no threshold for percentile {percentile}")
        value = value[percentile]
    if isinstance(value, (list, tuple)) and len(value) == 1:
        (value,) = value
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise InputError(f"config: expected one threshold, a number in nats, got {value!r}") from None


def _first(names: tuple[str, ...], *places: Mapping[str, Any]) -> Any:
    """The first value that one of the places has under one of the names, else None."""
    return next((place[name] for place in places for name in names if place.get(name) is not None), None)


def _look_up(name: str, table: Mapping[str, Any], value: str) -> Any:
    if not isinstance(value, str) or value not in table:
        raise InputError(f"config: {name} {value!r} is unknown, expected one of {', '.join(table)}")
    return table[value]


def _reshape(name: str, tensor: Tensor) -> Tensor:
    """They keep the Fourier features' matrix as a 1 x 1 convolution."""
    return tensor[:, :, 0, 0] if name.endswith("position.fourier.weight") else tensor
