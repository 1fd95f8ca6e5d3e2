"""``dqcore convert``: turn a checkpoint that the paper's authors released into a folder that dqcore loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from dqcore.codebook.modules import count_numbers
from dqcore.convert import dqtransformer_from_official, dqvae_from_official, load_official
from dqcore.errors import InputError
from dqcore.files import sole_owner

__all__ = ["convert"]


def convert(checkpoint: Annotated[Path, Positional], *, config: Path, out: Path) -> None:
    """Convert a checkpoint of the paper's authors, a tokenizer or a DQ-Transformer, to a folder that dqcore loads.

    Args:
        checkpoint: Their .ckpt, .pt or .safetensors file; nothing in it is executed.
        config: JSON file with their settings: kind, router, ch, ... of a tokenizer, coarse_hw, heads, ... of a
            DQ-Transformer. The docstring of dqcore.convert lists the keys of both.
        out: Folder for the model.
    """
    for name in ("config.json", "model.safetensors"):
        if (out / name).exists():
            raise InputError(f"out: {out} holds a {name} already; choose another folder")
    state = load_official(checkpoint)
    try:
        settings = json.loads(config.read_text())
    except ValueError as error:
        raise InputError(f"{config}: expected a JSON object ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{config}: expected a JSON object, got {type(settings).__name__}")
    read = dqtransformer_from_official if "content_layers" in settings else dqvae_from_official
    model = read(state, settings)
    with sole_owner(out):
        model.save_pretrained(out)
    parameters, codebook = count_numbers(model)
    print(f"{parameters:,} parameters{f' and a codebook of {codebook:,} numbers' if codebook else ''} in {out}")
