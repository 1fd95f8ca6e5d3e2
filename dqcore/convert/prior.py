"""The released DQ-Transformer's checkpoints, read into ours.

``config`` holds: ``coarse_hw`` (regions along a side; also a pair), ``codebook_size``, ``position_layers``,
``content_layers``, ``heads``, ``dim``, ``num_classes`` (0 without classes) and ``fine_position_order``. Their special
tokens are ours: padding, end and starts follow the codes and the positions in that order, and the start of class y is
the first start plus y.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.models.priors.dq_transformer import DQTransformer, DQTransformerConfig

__all__ = ["dqtransformer_from_official"]

#: Our names to theirs. A fused or stacked tensor of ours stands for several of theirs, divided by ``|``.
_RULES = [
    (r"^(position|content)_transformer\.blocks\.", r"\1_transformer."),
    (r"\.attention\.qkv\.(\w+)$", r".attn.query.\1|.attn.key.\1|.attn.value.\1"),
    (r"\.attention\.", ".attn."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"^content_embedding\.", "content_emb."),
    (r"^grain_embedding\.", "seg_emb."),
    (r"^step_embedding$", "pos_emb"),
    (r"^position_embedding\.weight$", "content_coarse_pos_emb.weight|content_fine_pos_emb.weight"),
]
_MASK = re.compile(r"^(position|content)_transformer\.\d+\.attn\.mask$")


def dqtransformer_from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any]) -> DQTransformer:
    """A :class:`dqcore.DQTransformer` with the weights of the authors' model, in evaluation mode.

    Its logits are theirs wherever their batch had no padding between coarse and fine codes.

    Args:
        state_dict: Their names to tensors, or a whole Lightning checkpoint, of whose first stage nothing is taken.
        config: Their configuration, see the module's docstring. Keys it does not name are ignored.

    Raises:
        ValueError: The configuration is incomplete, or weights are missing, left over or of the wrong shape.
    """
    state = _transformer(state_dict)
    model = DQTransformer(_config(config, state))
    own = model.state_dict()
    names = {name: _official_names(name) for name in own}
    expected = {official for parts in names.values() for official in parts}
    for what, found in (("lacks", expected - state.keys()), ("has no place for", state.keys() - expected)):
        if found:
            shown = ", ".join(sorted(found)[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
            raise InputError(f"state_dict: under this config the model {what} {shown}")
    model.load_state_dict({name: _merge(name, [state[part] for part in names[name]], own[name]) for name in own})
    return model.eval()


def _transformer(state_dict: Any) -> dict[str, Tensor]:
    state = state_dict.get("state_dict", state_dict) if isinstance(state_dict, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise InputError("state_dict: expected names and tensors, or a checkpoint with a state_dict")
    inner = {n.removeprefix("transformer."): t for n, t in state.items() if n.startswith("transformer.")}
    return {name: tensor for name, tensor in (inner or dict(state)).items() if not _MASK.match(name)}


def _config(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> DQTransformerConfig:
    try:
        side = config["coarse_hw"]
        grid = (side, side) if isinstance(side, int) else tuple(side)
        return DQTransformerConfig(
            codebook_size=config["codebook_size"],
            region_grid=grid,
            num_granularities=2,
            dim=config["dim"],
            num_heads=config["heads"],
            position_layers=config["position_layers"],
            content_layers=config["content_layers"],
            num_classes=config.get("num_classes", 0),
            max_steps=state["pos_emb"].shape[1] if "pos_emb" in state else 2048,
            order=config.get("fine_position_order", "region-first"),
        )
    except KeyError as error:
        raise InputError(f"config: {error.args[0]} is missing") from error


def _official_names(name: str) -> tuple[str, ...]:
    head = name
    for pattern, replacement in _RULES:
        if (match := re.search(pattern, head)) and "|" in replacement:
            return tuple(_shorten(head[: match.start()] + match.expand(part)) for part in replacement.split("|"))
        head = re.sub(pattern, replacement, head)
    return (head,)


def _shorten(name: str) -> str:
    return re.sub(r"^(position|content)_transformer\.blocks\.", r"\1_transformer.", name)


def _merge(name: str, parts: list[Tensor], own: Tensor) -> Tensor:
    tensor = parts[0][0] if name == "step_embedding" and parts[0].dim() == 3 else torch.cat(parts)
    if tensor.shape != own.shape:
        raise InputError(f"state_dict: {name} would have shape {tuple(tensor.shape)}, config wants {tuple(own.shape)}")
    return tensor.to(own.dtype)
