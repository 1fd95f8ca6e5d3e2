"""An arm trained: from options to a finished run, or on from where an earlier try was killed."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from dqcore.backends import choose_device
from dqcore.errors import InputError
from dqcore.experiments.arms import Arm
from dqcore.experiments.setting import Setting
from dqcore.files import write_json
from dqcore.models.auto import TOKENIZERS, kind_of_preset
from dqcore.training import PriorTraining, TokenizerTraining, train_prior, train_tokenizer

__all__ = ["FINISHED", "check_same", "is_trained", "new_tokenizer", "read_notes", "train_arm"]

#: The file that says that a run is finished, and what it was.
FINISHED = "finished.json"


def train_arm(arm: Arm, setting: Setting) -> Path:
    """Train an arm, unless it is trained already; what it needs must be.

    Returns:
        The folder of its run.

    Raises:
        InputError: The folder holds a run with other options or photos.
    """
    folder = setting.run_folder(arm)
    if is_trained(arm, setting):
        return folder
    start, resumed = time.perf_counter(), (folder / "checkpoint.pt").is_file()
    options: dict[str, Any] = dict(arm.options) | {
        "seed": arm.seed,
        "out": folder,
        "device": setting.scale.device,
        "resume": True,
    }
    if setting.minutes is not None:
        options = options | {"steps": None, "epochs": None, "minutes": setting.minutes}
    if arm.kind == "tokenizer":
        _train_tokenizer(arm, setting, options)
    else:
        (tokenizer,) = arm.needs
        data: dict[str, Any] = {
            "data": setting.photos.train,
            "tokenizer": setting.run_folder(tokenizer),
            "preset": arm.preset,
        }
        train_prior(PriorTraining(**options, **data), progress=_quiet)
    seconds = {"seconds": time.perf_counter() - start, "resumed": resumed}
    write_json(folder / FINISHED, {"arm": setting.described(arm), "made_by": setting.made_by, **seconds})
    return folder


def is_trained(arm: Arm, setting: Setting) -> bool:
    """Whether a finished run of this arm is there.

    Raises:
        InputError: A finished run of this name is there, but with other options or photos, or its notes are damaged.
    """
    path = setting.run_folder(arm) / FINISHED
    if not path.is_file():
        return False
    check_same(path, read_notes(path)["arm"], setting.described(arm))
    return True


def read_notes(path: Path, **kinds: type) -> dict[str, Any]:
    """The JSON object that was written beside a finished piece of work.

    Args:
        path: The file.
        kinds: What it must have beside ``arm``, and of which kind.

    Raises:
        InputError: It is damaged.
    """
    try:
        found = json.loads(path.read_text())
        for name, kind in {"arm": dict, **kinds}.items():
            value = found.get(name)
            if not isinstance(value, kind) or (kind is float and not 0 <= found[name] < math.inf):
                raise ValueError(f"{name}: expected {kind.__name__}, got {value!r:.60}")
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"out: {path} is damaged ({error}); remove it, and that piece is done again") from error
    return dict(found)


def check_same(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise if what a file describes is another arm than the one that is wanted; the message names what differs."""
    for name, value in wanted.items():
        before = stored.get(name)
        if before == value:
            continue
        if isinstance(before, dict) and isinstance(value, dict):
            name = next(key for key in {**before, **value} if before.get(key) != value.get(key))
            before, value = before.get(name), value.get(name)
        raise InputError(f"out: {path} was made with {name} {before}, now it is {value}; choose another folder")


def new_tokenizer(arm: Arm, device: str = "cpu") -> Any:
    """The arm's tokenizer with new weights, which its seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arm.seed)
        model = kind_of_preset(arm.preset, TOKENIZERS, "tokenizer").from_preset(arm.preset, **arm.model)
    return model.to(memory_format=torch.channels_last) if choose_device(device).type == "cpu" else model


def _train_tokenizer(arm: Arm, setting: Setting, options: dict[str, Any]) -> None:
    data: dict[str, Any] = {"data": setting.photos.train, "validation": setting.validation_list(), "preset": arm.preset}
    model = new_tokenizer(arm, setting.scale.device)
    train_tokenizer(TokenizerTraining(**options, **data), model=model, progress=_quiet)


def _quiet(row: object) -> None:
    """Show nothing: the arms of several processes would talk at once."""
