"""One training step of a prior, and what is measured on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dqcore.codes import CodeSequence
from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.models.priors.config import PriorOutput
from dqcore.training.average import WeightAverage
from dqcore.training.loop import NonFiniteLossError

__all__ = ["PriorStep", "measure"]


class PriorStep:
    """Everything that a training step changes, and the step: AdamW with betas (0.9, 0.95) on packed batches.

    Args:
        model: Prior; ``model(sequence, labels)`` returns a :class:`PriorOutput`.
        world: This process and its device.
        weight_decay: Of the weights of linear layers.
        gradient_clip: Largest norm of the gradient, or None.
        autocast: Run the network in bfloat16.
        average: Weight average to keep up to date.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        *,
        weight_decay: float = 0.01,
        gradient_clip: float | None = None,
        autocast: bool = False,
        average: WeightAverage | None = None,
    ) -> None:
        self.model, self.world, self.average = model, world, average
        self.limit = float("inf") if gradient_clip is None else gradient_clip
        self.autocast = autocast
        linear = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
        others = [p for p in model.parameters() if p not in linear]
        decayed = [p for p in model.parameters() if p in linear]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
        self.parameters = decayed + others

    def __call__(
        self, sequence: CodeSequence, labels: Tensor | None, step: int, learning_rate: float
    ) -> dict[str, Any]:
        """Train on a batch; returns means over all processes of what :func:`measure` names, and the gradient's norm.

        Raises:
            NonFiniteLossError: before the optimiser has moved.
        """
        self.model.train()
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.autocast):
            output: PriorOutput = self.model(sequence, labels)
        self.optimizer.zero_grad()
        output.loss.backward()
        self.world.average_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.limit)
        numbers = measure(output, len(sequence), self.levels)
        values = self.world.mean(torch.stack([*numbers.values(), norm.float()])).tolist()
        row = dict(zip([*numbers, "gradient_norm"], values, strict=True))
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(row[name]):
                raise NonFiniteLossError(name, step + 1, row[name])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return row

    @property
    def levels(self) -> int:
        """Granularities of the model."""
        config: Any = self.model.config
        return int(config.num_granularities)

    @torch.no_grad()
    def validate(self, model: nn.Module, batches: Iterable[tuple[CodeSequence, Tensor | None]]) -> dict[str, Any]:
        """What :func:`measure` names, with ``val_`` before it: means over the images of all processes."""
        model.eval()
        names = _names(self.levels)
        total = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.world.device)
        for sequence, labels in batches:
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.autocast):
                numbers = measure(model(sequence, labels), len(sequence), self.levels)
            total += torch.stack([*numbers.values(), torch.ones_like(numbers["loss"])]).double() * len(sequence)
        total = self.world.sum(total)
        return dict(zip([f"val_{name}" for name in names], (total[:-1] / total[-1]).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Model, optimiser and weight average."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: It has other parts.
        """
        for name, part in self._parts().items():
            try:
                part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"checkpoint: its {name} does not fit this run: {reason}") from error

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "average": self.average}
        return {name: part for name, part in parts.items() if part is not None}


def _names(levels: int) -> list[str]:
    each = [f"{kind}_loss_{g}" for g in range(levels) for kind in ("content", "position")]
    return ["loss", "content_loss", "position_loss", "bits_per_image", *each]


@torch.no_grad()
def measure(output: PriorOutput, num_images: int, levels: int) -> dict[str, Tensor]:
    """Scalars of a batch: the losses, all of them for each granularity in nats, and bits for an image.

    ``bits_per_image`` is what an ideal coder spends on all contents and positions of an image, its special tokens
    included. A granularity that does not occur counts as 0.
    """
    contents, positions = output.content_losses, output.position_losses
    positions = torch.zeros_like(contents) if positions is None else positions
    values = [output.loss.detach(), output.content_loss.detach(), output.position_loss.detach()]
    values.append((contents.double().sum() + positions.double().sum()).float() / (num_images * math.log(2)))
    for g in range(levels):
        mine = output.targets.grains == g
        count = mine.sum().clamp_min(1)
        values += [torch.where(mine, losses, 0.0).sum() / count for losses in (contents, positions)]
    return dict(zip(_names(levels), values, strict=True))
