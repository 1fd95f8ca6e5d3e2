"""What a run is doing now: ``status.json`` in its folder, for the report while the run goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dqcore.files import write_json
from dqcore.models.checks import check_types
from dqcore.progress import duration
from dqcore.training.schedule import LearningRate, TimedLearningRate

__all__ = ["FILE", "Status", "peak_memory", "read_status", "seconds_left"]

FILE = "status.json"


@dataclass(frozen=True)
class Status:
    """A run at one moment.

    Attributes:
        step: Steps done.
        total: Steps of the run; None for one of minutes.
        images_per_second: Images trained on each second, of all processes.
        memory_gib: The most memory so far, in GiB: of the GPU, or of the main process on a CPU.
        seconds_left: About how long the run will still take; 0 at its end.
    """

    step: int
    total: int | None
    images_per_second: float
    memory_gib: float
    seconds_left: float

    def write(self, folder: Path) -> None:
        """Write ``status.json``."""
        write_json(folder / FILE, asdict(self))

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        left = f"about {duration(self.seconds_left)} to go" if self.seconds_left else "finished"
        speed = f"{self.images_per_second:.3g} images a second"
        return f"step {self.step:,}{of}, {speed}, at most {self.memory_gib:.2g} GiB of memory, {left}"


def read_status(folder: Path) -> Status | None:
    """What a run's folder says; None where it says nothing that can be read."""
    try:
        fields = json.loads((folder / FILE).read_text())
        check_types(Status, fields, FILE)
        return Status(**fields)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has used so far, in GiB: of a GPU, what its tensors took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def seconds_left(
    length: LearningRate | TimedLearningRate, completed: int, seconds: float, step_seconds: float
) -> float:
    """How long a run will still take.

    Args:
        length: The run's length.
        completed: Steps done.
        seconds: Time of the run so far.
        step_seconds: What a step takes at the moment.
    """
    if isinstance(length, TimedLearningRate):
        return max(0.0, length.seconds - seconds)
    return (length.total - completed) * step_seconds
