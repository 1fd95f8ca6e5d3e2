"""What both stages of training have in common: a step that changes the model, and a stage around it for the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from dqcore.distributed import World
from dqcore.errors import DqcoreError, InputError
from dqcore.training.average import WeightAverage
from dqcore.training.log import Row

__all__ = [
    "NonFiniteLossError",
    "NonFiniteWeightsError",
    "Stage",
    "TrainingStep",
    "all_finite",
    "default_device_on_cpu",
]

Batch = TypeVar("Batch")


class NonFiniteLossError(DqcoreError, FloatingPointError):
    """A loss or the gradient became infinite or NaN. No optimiser has used it.

    Attributes:
        term: The first such term, in the order in which the step checks them.
        step: The number of the step, counted from 1.
    """

    def __init__(self, term: str, step: int, value: float) -> None:
        super().__init__(f"{term} is {value} in step {step}")
        self.term, self.step = term, step


class NonFiniteWeightsError(DqcoreError, FloatingPointError):
    """An update made weights infinite or NaN. They were not saved; the last checkpoint is still there."""


def default_device_on_cpu() -> AbstractContextManager[object]:
    """While this is open, a tensor of no named device is on the CPU, whatever ``torch.set_default_device`` said.

    PyTorch's loaders and permutations draw with generators of the CPU, and fail where such tensors are elsewhere.
    """
    return contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def all_finite(compute: Callable[[], torch.Tensor]) -> bool:
    """Whether what is computed is finite, or cannot be computed at all: an error is being explained already."""
    try:
        return bool(compute().isfinite().all())
    except Exception:
        return True


class TrainingStep:
    """Everything that a training step changes. A subclass is called with a batch, and trains on it.

    Args:
        model: The model in training.
        world: This process and its device.
        average: The moving average of the model's weights; None keeps none.
        others: Other parts with a state, such as optimisers, by the names they have in a checkpoint; None for a part
            that this run does without.
    """

    #: Whether the tensors lie in parts on all processes.
    sharded = False

    def __init__(self, model: nn.Module, world: World, average: WeightAverage | None, **others: Any) -> None:
        self.model, self.world, self.average = model, world, average
        parts = {"model": model, **others, "average": average}
        self._parts = {name: part for name, part in parts.items() if part is not None}

    @property
    def model_to_use(self) -> Any:
        """The moving average of the model's weights if there is one, else the model."""
        return self.model if self.average is None else self.average.module

    def state_dict(self) -> dict[str, Any]:
        """The state of every part, by its name."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def tensors(self) -> dict[str, dict[str, Any]]:
        """Every tensor of the state by part and name, to be read or written in place, of a step that can be sharded."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: It lacks a part of this run, or a part does not fit.
        """
        for name, part in self._parts.items():
            try:
                part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"checkpoint: its {name} does not fit this run: {reason}") from error

    @staticmethod
    def _clip(parameters: list[nn.Parameter], limit: float | None) -> torch.Tensor:
        """Shorten a gradient to the norm ``limit``; without one it is only measured. Returns its norm before that."""
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    @staticmethod
    def _update(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()


class Stage(Protocol[Batch]):
    """A stage, as the loop sees it: it gives out batches, trains on them, validates and saves."""

    @property
    def step(self) -> TrainingStep:
        """The training step."""
        ...

    @property
    def broken(self) -> set[str]:
        """A message for each file that could not be read so far; it is kept in the checkpoint."""
        ...

    @property
    def pictured(self) -> str:
        """What :meth:`picture` shows, in a word for TensorBoard."""
        ...

    def batches(self, start: int, stop: int) -> Iterable[Batch]:
        """This process's batches of steps ``start .. stop - 1``."""
        ...

    def train(self, batch: Batch, completed: int, learning_rate: float) -> tuple[Row, int]:
        """Train on a batch after ``completed`` steps: its numbers, and how many images all processes trained on."""
        ...

    def status(self) -> Row:
        """More numbers for a row of metrics, which are not computed in every step. Every process calls this."""
        ...

    def validate(self) -> Row | None:
        """The numbers measured on held-out images; None if there are none."""
        ...

    def picture(self) -> torch.Tensor | None:
        """What the model does, to look at: ``(3, H, W)`` in [-1, 1]; None where there is nothing to see."""
        ...

    def settled(self) -> AbstractContextManager[object]:
        """While this is open, the model is as the run will leave it: the last validation measures the final model."""
        ...

    def save_model(self, folder: Path) -> None:
        """Write the weights to use into a folder, as the kind's ``from_pretrained`` reads them.

        Every process calls this, and the first one writes.
        """
        ...

    def contents_of(self, batch: Batch) -> Row:
        """The batch, as ``nonfinite.pt`` keeps it if its loss is not finite. Every process calls this."""
        ...

    def blame(self, batch: Batch) -> str:
        """Which images of a batch give results that are not finite, in words. Every process calls this."""
        ...
