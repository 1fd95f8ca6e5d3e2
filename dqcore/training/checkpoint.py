"""The whole state of a run in one file, and back: weights, optimisers, average, random states, steps done.

The order of the images and the learning rate are functions of the step, so they need no state.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.training.shards import FOLDER, read_shards
from dqcore.training.stage import TrainingStep
from dqcore.training.state import read_state

__all__ = ["capture", "restore"]

FORMAT = 1

log = logging.getLogger(__name__)


def capture(
    step: TrainingStep, world: World, completed: int, broken: Iterable[str] = (), seconds: float | None = None
) -> dict[str, Any]:
    """The state of a run, as tensors and plain values that can be read with ``weights_only=True``.

    Every process must call this. Of a sharded step it lacks the tensors.

    Args:
        step: The training step, with the model and everything else that it changes.
        world: All processes.
        completed: Steps done so far.
        broken: A message for each file that this process could not read so far; those of all are kept.
        seconds: Time that a timed run has taken so far; None for a run of steps.
    """
    return {
        "format": FORMAT,
        "step": completed,
        **({} if seconds is None else {"seconds": seconds}),
        "broken": sorted(set().union(*world.gather(sorted(broken)))),
        "random": world.gather(_random_state(world.device)),
        **({} if step.sharded else step.state_dict()),
    }


def restore(path: Path, step: TrainingStep, world: World) -> tuple[int, list[str], float]:
    """Put a captured state back, random states included, unless it is of another number of processes.

    Returns:
        The ``completed``, ``broken`` and ``seconds`` (0 for None) that :func:`capture` was called with.

    Raises:
        ValueError: the file is damaged, has another format, or is of a run with other parts.
    """
    state = read_state(path)
    if state.get("format") != FORMAT:
        raise InputError(f"{path}: expected a checkpoint of format {FORMAT}, got {state.get('format')}")
    if lacking := {"random", "step", "broken"} - state.keys():
        raise InputError(f"{path}: not a checkpoint of a training run (it lacks {', '.join(sorted(lacking))})")
    if FOLDER in state:
        read_shards(path, state, step.tensors(), world)
    else:
        step.load_state_dict(state)
    if len(state["random"]) == world.size:
        cpu, cuda = state["random"][world.rank]
        torch.set_rng_state(cpu)
        if cuda is not None and world.device.type == "cuda":
            torch.cuda.set_rng_state(cuda, world.device)
    elif world.is_main:
        log.warning(
            "%s: written by %d processes, goes on with %d: their batches and random numbers are others",
            *(path, len(state["random"]), world.size),
        )
    return int(state["step"]), list(state["broken"]), float(state.get("seconds", 0.0))


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda
