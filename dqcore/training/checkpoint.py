"""The whole state of a run in one file, and back: weights, optimisers, discriminator, average, random states, step.

The order of the images and the learning rate are functions of the step and need no state of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.training.state import read_state

FORMAT = 1


class Trainer(Protocol):
    """What a step of training changes, as named tensors and plain values."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back."""
        ...


def capture(trainer: Trainer, world: World, completed: int, broken: Iterable[str] = ()) -> dict[str, Any]:
    """The state after ``completed`` steps and the ``broken`` files met; every process must call this.

    Returns:
        Tensors and plain values; readable with ``weights_only=True``.
    """
    return {
        "format": FORMAT,
        "step": completed,
        "broken": sorted(broken),
        "random": world.gather(_random_state(world.device)),
        **trainer.state_dict(),
    }


def restore(path: Path, trainer: Trainer, world: World) -> tuple[int, list[str]]:
    """Put a captured state back, random states included; returns the steps completed and the broken files met.

    Raises:
        ValueError: the file is damaged, of another format, or of a run with other parts or processes.
    """
    state = read_state(path)
    if state.get("format") != FORMAT:
        raise InputError(f"{path}: expected a checkpoint of format {FORMAT}, got {state.get('format')}")
    if len(state["random"]) != world.size:
        raise InputError(f"{path}: written by {len(state['random'])} processes, cannot be resumed by {world.size}")
    trainer.load_state_dict(state)
    cpu, cuda = state["random"][world.rank]
    torch.set_rng_state(cpu)
    if cuda is not None and world.device.type == "cuda":
        torch.cuda.set_rng_state(cuda, world.device)
    return int(state["step"]), list(state["broken"])


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda
