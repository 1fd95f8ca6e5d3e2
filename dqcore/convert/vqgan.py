"""VQGAN's checkpoints of taming-transformers, read into ours and back, and the tokenizers of LlamaGen, read into ours.

Both are recognised by their keys. All sizes are read from the shapes of their tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from dqcore.convert.official import Rule, official_names, state_under, translate_state
from dqcore.errors import InputError
from dqcore.models.tokenizers.vqgan import VQGAN, VQGANConfig

__all__ = ["recognise", "vqgan_from_llamagen", "vqgan_from_taming", "vqgan_to_taming"]

#: Tensors of a checkpoint that are not the tokenizer's: losses, a transformer, LlamaGen's record of the codes used.
_DROPPED = re.compile(r"^(loss|transformer|cond_stage_model|permuter)\.|^quantize\.codebook_used$")
_CODES = "quantize.embedding.weight"

#: Our names to theirs, where both libraries agree.
_SHARED: list[Rule] = [
    (r"^encoder\.heads\.0\.(norm|conv)\.", r"encoder.\1_out."),
    (r"^encoder\.heads\.0\.middle\.", "encoder.mid."),
    (r"^decoder\.middle\.", "decoder.mid."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.proj\.", ".proj_out."),
    (r"^(.*)\.qkv\.(\w+)$", r"\1.q.\2|\1.k.\2|\1.v.\2"),
]
_TAMING: list[Rule] = [
    (r"^encoder\.downsamples\.(\d+)\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.upsamples\.(\d+)\.", lambda match: f"decoder.up.{int(match[1]) + 1}.upsample."),
    (r"^encoder\.levels\.(\d+)\.", r"encoder.down.\1."),
    (r"^decoder\.levels\.(\d+)\.", r"decoder.up.\1."),
    (r"\.blocks\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.block([12])\.", r".block_\1."),
    (r"\.attention\.", ".attn_1."),
    *_SHARED,
]


def recognise(state: Mapping[str, Any]) -> Literal["taming", "llamagen"] | None:
    """Whose tokenizer a state dict is, by its keys; None if it is neither's."""
    state = state_under(state, "first_stage_model.")
    if _CODES not in state:
        return None
    if any(name.startswith("encoder.conv_blocks.") for name in state):
        return "llamagen"
    return "taming" if any(name.startswith("encoder.down.") for name in state) else None


def vqgan_from_taming(state_dict: Mapping[str, Any]) -> VQGAN:
    """A ``VQGAN`` with the weights of taming-transformers' VQGAN, in evaluation mode.

    Args:
        state_dict: Their names to tensors, or a whole Lightning checkpoint; of a transformer's the first stage is read.

    Raises:
        ValueError: Weights are missing, left over or of the wrong shape.
    """
    return _read(state_dict, _TAMING)


def vqgan_from_llamagen(state_dict: Mapping[str, Any], *, l2_norm: bool = True) -> VQGAN:
    """A ``VQGAN`` with the weights of LlamaGen's VQ-8 or VQ-16, in evaluation mode.

    LlamaGen divides features and codes by their lengths before the lookup. Among codes of length 1 the nearest does not
    depend on the length of a feature, so ours holds the divided codes and looks up features as they are. To train it
    further is another matter: the codebook's averages would not keep the lengths.

    Args:
        state_dict: Their names to tensors, or a checkpoint that holds them under ``ema``, ``model`` or ``state_dict``.
        l2_norm: Whether they were trained that way, as all released ones are.

    Raises:
        ValueError: Weights are missing, left over or of the wrong shape.
    """
    state = state_under(state_dict, "first_stage_model.")
    levels = len({name.split(".")[2] for name in state if name.startswith("encoder.conv_blocks.")})
    model = _read(state, _llamagen(levels))
    if l2_norm:
        model.quantizer.codes = F.normalize(model.quantizer.codes, dim=1)
    return model


def vqgan_to_taming(model: VQGAN) -> dict[str, Tensor]:
    """The state dict that taming-transformers would load; the inverse of :func:`vqgan_from_taming`.

    Raises:
        ValueError: Their code has no such model.
    """
    if not isinstance(model, VQGAN):
        raise InputError(f"model: expected a VQGAN, got {type(model).__name__}")
    config = model.config
    if config.stem != 1 or config.groups != 32 or config.position != "none" or not config.middle_attention:
        raise InputError("model: expected stem 1, 32 groups, no position and attention in the middle, as theirs have")
    strides = {2**level for level in range(len(config.encoder_multipliers))}
    alike = not strides & (set(config.encoder_attention) ^ set(config.decoder_attention))
    if config.linear_path or not alike or config.encoder_multipliers != config.decoder_multipliers:
        raise InputError("model: expected no linear path, and a decoder with its encoder's widths and attention")
    state = {_CODES: model.quantizer.codes.detach().clone()}
    for name, tensor in _without_quantizer(model).items():
        parts = official_names(name, _TAMING)
        state.update(zip(parts, tensor.detach().clone().chunk(len(parts)), strict=True))
    return state


def _llamagen(levels: int) -> list[Rule]:
    """LlamaGen counts the decoder's levels from the latent grid on."""
    return [
        (r"^encoder\.downsamples\.(\d+)\.", r"encoder.conv_blocks.\1.downsample."),
        (r"^decoder\.upsamples\.(\d+)\.", lambda m: f"decoder.conv_blocks.{levels - 2 - int(m[1])}.upsample."),
        (r"^encoder\.levels\.(\d+)\.", r"encoder.conv_blocks.\1."),
        (r"^decoder\.levels\.(\d+)\.", lambda m: f"decoder.conv_blocks.{levels - 1 - int(m[1])}."),
        (r"\.blocks\.", ".res."),
        (r"\.attentions\.", ".attn."),
        (r"\.block1\.", ".0."),
        (r"\.attention\.", ".1."),
        (r"\.block2\.", ".2."),
        *_SHARED,
    ]


def _read(state_dict: Mapping[str, Any], rules: list[Rule]) -> VQGAN:
    state = state_under(state_dict, "first_stage_model.")
    state = {name: tensor for name, tensor in state.items() if not _DROPPED.search(name)}
    model = VQGAN(_config(state, rules))
    codes = state.pop(_CODES)
    own = _without_quantizer(model)
    model.load_state_dict({**model.state_dict(), **translate_state(state, own, rules, lambda _, tensor: tensor)})
    model.quantizer.codes = codes
    return model.eval()


def _without_quantizer(model: VQGAN) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("quantizer.")}


def _config(state: Mapping[str, Tensor], rules: list[Rule]) -> VQGANConfig:
    """Our configuration, from the shapes of their tensors."""

    def shape(name: str) -> tuple[int, ...] | None:
        tensor = state.get(official_names(name, rules)[0])
        return None if tensor is None else tuple(tensor.shape)

    def needed(name: str) -> tuple[int, ...]:
        found = shape(name)
        if found is None:
            raise InputError(f"state_dict: expected {official_names(name, rules)[0]}")
        return found

    def count(pattern: str) -> int:
        found = 0
        while shape(pattern.format(found)) is not None:
            found += 1
        return found

    channels = needed("encoder.conv_in.weight")[0]
    levels = count("encoder.levels.{}.blocks.0.conv1.weight")
    sides: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        widths = [needed(f"{side}.levels.{level}.blocks.0.conv1.weight")[0] for level in range(levels)]
        sides[f"{side}_multipliers"] = tuple(width // channels for width in widths)
        attention = [level for level in range(levels) if shape(f"{side}.levels.{level}.attentions.0.norm.weight")]
        sides[f"{side}_attention"] = tuple(2**level for level in attention)
    codebook_size, dim = _shape_of_codes(state)
    return VQGANConfig(
        strides=(2 ** (levels - 1),),
        codebook_size=codebook_size,
        dim=dim,
        latent_channels=needed("quant_conv.weight")[1],
        channels=channels,
        num_blocks=count("encoder.levels.0.blocks.{}.conv1.weight"),
        **sides,
    )


def _shape_of_codes(state: Mapping[str, Tensor]) -> tuple[int, int]:
    codes = state.get(_CODES)
    if codes is None or codes.dim() != 2:
        raise InputError(f"state_dict: expected {_CODES}, one vector for each code")
    return len(codes), codes.shape[1]
