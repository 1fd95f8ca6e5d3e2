"""The released DQ-Transformer's checkpoints, read into ours and back; ``dqcore.convert`` lists their settings.

Their special tokens are ours: padding, end and start follow the codes and the positions in that order, and the start of
class y is the first start plus y.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from dqcore.models.priors.dq_transformer import DQTransformer, DQTransformerConfig

__all__ = ["dqtransformer_from_official", "dqtransformer_to_official"]

#: Our names to theirs.
_RULES: list[Rule] = [
    (r"^(position|content)_transformer\.blocks\.", r"\1_transformer."),
    (r"^(.*)\.attention\.qkv\.(\w+)$", r"\1.attn.query.\2|\1.attn.key.\2|\1.attn.value.\2"),
    (r"\.attention\.", ".attn."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"^content_embedding\.", "content_emb."),
    (r"^grain_embedding\.", "seg_emb."),
    (r"^step_embedding$", "pos_emb"),
    (r"^position_embedding\.weight$", "content_coarse_pos_emb.weight|content_fine_pos_emb.weight"),
]
_SIZES = ("codebook_size", "position_layers", "content_layers", "heads", "dim")
_MASK = re.compile(r"^(position|content)_transformer\.\d+\.attn\.mask$")


def dqtransformer_from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any]) -> DQTransformer:
    """A :class:`dqcore.DQTransformer` with the weights of the authors' model, in evaluation mode.

    Its logits are theirs wherever their batch had no padding between coarse and fine codes.

    Args:
        state_dict: Their names to tensors, or a whole Lightning checkpoint; its first stage is ignored.
        config: Their configuration, see :mod:`dqcore.convert`. Keys that are not named there are ignored.

    Raises:
        ValueError: The configuration is incomplete, or weights are missing, left over or of the wrong shape.
    """
    check_config(config, dict.fromkeys(_SIZES, "size"))
    state = state_under(state_dict, "transformer.")
    state = {name: tensor for name, tensor in state.items() if not _MASK.match(name)}
    with missing_keys_named():
        ours = _config(config, state)
    model = DQTransformer(ours)
    model.load_state_dict(translate_state(state, model.state_dict(), _RULES, _reshape))
    _check_tokens(config, ours)
    return model.eval()


def dqtransformer_to_official(model: DQTransformer) -> dict[str, Tensor]:
    """The state dict of the authors' transformer; the inverse of :func:`dqtransformer_from_official`.

    Their causal masks are not in it: load it with ``strict=False``, as their code does.

    Raises:
        ValueError: Their code has no such model (other than two granularities, or a grid that is not square).
    """
    rows, columns = model.config.region_grid
    if model.config.num_granularities != 2 or rows != columns:
        raise InputError("model: expected two granularities and a square grid of regions, as theirs have")
    state = dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        parts = official_names(name, _RULES)
        tensor = tensor.detach().clone()
        if name == "step_embedding":
            tensor = tensor[None]
        # The table of coarse positions is smaller than that of fine ones, by three positions a region.
        first = (len(tensor) - 3 * rows * columns) // 2 if name == "position_embedding.weight" else 0
        pieces = tensor.tensor_split([first]) if first else tensor.chunk(len(parts))
        state.update(zip(parts, pieces, strict=True))
    return state


def _config(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> DQTransformerConfig:
    side = config["coarse_hw"]
    check_config(config, {"coarse_hw": "sizes" if isinstance(side, (list, tuple)) else "size"})
    return DQTransformerConfig(
        codebook_size=config["codebook_size"],
        region_grid=(side, side) if isinstance(side, int) else tuple(side),
        num_granularities=2,
        dim=config["dim"],
        num_heads=config["heads"],
        position_layers=config["position_layers"],
        content_layers=config["content_layers"],
        num_classes=config.get("num_classes", 0),
        max_steps=state["pos_emb"].shape[1] if "pos_emb" in state else 2048,
        order=config.get("fine_position_order", "region-first"),
    )


def _check_tokens(config: Mapping[str, Any], ours: DQTransformerConfig) -> None:
    """Raise if their special tokens are others than ours: the weights would fit and mean something else."""
    regions = ours.region_grid[0] * ours.region_grid[1]
    check_config(config, {"special_tokens": "mapping"})
    given = config.get("special_tokens", {})
    check_config(given, dict.fromkeys(given, "mapping"))
    for stream, first in {
        "content": ours.codebook_size,
        "coarse_position": regions,
        "fine_position": 4 * regions,
    }.items():
        expected = {"pad": first, "eos": first + 1, "sos": first + 2}
        if {**expected, **given.get(stream, {})} != expected:
            raise InputError(f"config: special_tokens: {stream}: expected {expected}, got {dict(given[stream])}")


def _reshape(name: str, tensor: Tensor) -> Tensor:
    """Their table of steps has a batch dimension of one."""
    return tensor[0] if name == "step_embedding" and tensor.dim() == 3 else tensor
