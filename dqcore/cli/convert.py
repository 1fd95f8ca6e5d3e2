"""``dqcore convert``: turn other people's checkpoints into a folder that dqcore loads, and a VQGAN back into theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from dqcore.codebook.modules import count_numbers
from dqcore.convert import (
    dqtransformer_from_official,
    dqvae_from_official,
    load_official,
    recognise,
    vqgan_from_llamagen,
    vqgan_from_taming,
    vqgan_to_taming,
)
from dqcore.errors import InputError
from dqcore.files import sole_owner
from dqcore.files.tensors import write_state
from dqcore.models.auto import TOKENIZERS, load_saved
from dqcore.printing import say

__all__ = ["convert"]

_READ = {"taming": vqgan_from_taming, "llamagen": vqgan_from_llamagen}


def convert(
    checkpoint: Annotated[Path, Positional],
    *,
    out: Path,
    config: Path | None = None,
    to: Literal["dqcore", "taming"] = "dqcore",
) -> None:
    """Convert a checkpoint to a folder that dqcore loads: of the paper's authors, taming-transformers or LlamaGen.

    A VQGAN of taming-transformers and a tokenizer of LlamaGen are known by their keys, and need no config. With --to
    taming, a saved VQGAN becomes a checkpoint that taming-transformers loads.

    Args:
        checkpoint: Their .ckpt, .pt or .safetensors file; nothing in it is executed. With --to taming, a folder.
        out: Folder for the model; with --to taming, the file.
        config: Of the paper's authors' models: JSON file with their settings, kind, router, ch, ... of a tokenizer,
            coarse_hw, heads, ... of a DQ-Transformer. The docstring of dqcore.convert lists the keys of both.
        to: Whose checkpoint is written.
    """
    if to == "taming":
        _to_taming(checkpoint, out, config)
        return
    for name in ("config.json", "model.safetensors"):
        if (out / name).exists():
            raise InputError(f"out: {out} holds a {name} already; choose another folder")
    model = _read(checkpoint, config)
    with sole_owner(out):
        model.save_pretrained(out)
    parameters, codebook = count_numbers(model)
    say(f"{parameters:,} parameters{f' and a codebook of {codebook:,} numbers' if codebook else ''} in {out}")


def _read(checkpoint: Path, config: Path | None) -> Any:
    """The model in their file."""
    state = load_official(checkpoint)
    if config is None:
        kind = recognise(state)
        if kind is None:
            raise InputError(f"config: {checkpoint} is neither taming-transformers' nor LlamaGen's; give its settings")
        say(f"{checkpoint} holds a tokenizer of {'LlamaGen' if kind == 'llamagen' else 'taming-transformers'}")
        return _READ[kind](state)
    try:
        settings = json.loads(config.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{config}: expected a JSON object ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{config}: expected a JSON object, got {type(settings).__name__}")
    read = dqtransformer_from_official if "content_layers" in settings else dqvae_from_official
    return read(state, settings)


def _to_taming(folder: Path, out: Path, config: Path | None) -> None:
    if config is not None:
        raise InputError("config: not with --to taming")
    if out.exists():
        raise InputError(f"out: {out} is there already; choose another name")
    state = vqgan_to_taming(load_saved(folder, TOKENIZERS))
    write_state(out, {"state_dict": state})
    say(f"{len(state)} tensors in {out}")
