"""One training step of a prior, and the numbers that it reports."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dqcore.codes import CodeSequence
from dqcore.distributed import World
from dqcore.models.priors.config import PriorOutput
from dqcore.training.average import WeightAverage
from dqcore.training.stage import NonFiniteLossError, TrainingStep

__all__ = ["PriorStep", "measure"]


class PriorStep(TrainingStep):
    """A training step of a prior, and everything that it changes: AdamW with betas (0.9, 0.95) on packed batches.

    Args:
        model: Prior; ``model(sequence, labels)`` returns a :class:`PriorOutput`.
        world: This process and its device.
        weight_decay: Of the weights of linear layers.
        gradient_clip: Largest norm of the gradient, or None.
        autocast: Run the network in bfloat16.
        average: Moving average of the weights, updated after each step.
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
        self.limit = float("inf") if gradient_clip is None else gradient_clip
        self.autocast = autocast
        linear = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
        others = [p for p in model.parameters() if p not in linear]
        decayed = [p for p in model.parameters() if p in linear]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
        self.parameters = decayed + others
        super().__init__(model, world, average, optimizer=self.optimizer)

    def __call__(
        self, sequence: CodeSequence, labels: Tensor | None, completed: int, learning_rate: float
    ) -> dict[str, Any]:
        """Train on a batch.

        Args:
            sequence: The codes of ``B`` images.
            labels: ``(B,)`` int64, or None without classes.
            completed: Steps done before this one.
            learning_rate: For this step.

        Returns:
            The numbers of :func:`measure`, as means over all processes, and ``gradient_norm``.

        Raises:
            NonFiniteLossError: the loss or the gradient is infinite or NaN; no weight has changed.
        """
        self.model.train()
        output = self._forward(self.model, sequence, labels)
        self.optimizer.zero_grad()
        output.loss.backward()
        self.world.average_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.limit)
        numbers = measure(output, len(sequence), self.num_granularities)
        values = self.world.mean(torch.stack([*numbers.values(), norm.float()])).tolist()
        row = dict(zip([*numbers, "gradient_norm"], values, strict=True))
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(row[name]):
                raise NonFiniteLossError(name, completed + 1, row[name])
        self._update(self.optimizer, learning_rate)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return row

    @property
    def num_granularities(self) -> int:
        """Granularities of the model."""
        config: Any = self.model.config
        return int(config.num_granularities)

    @torch.no_grad()
    def validate(self, model: nn.Module, batches: Iterable[tuple[CodeSequence, Tensor | None]]) -> dict[str, Any]:
        """Measure a model on held-out images; it is left in evaluation mode.

        Args:
            model: The prior to measure, in training or averaged.
            batches: This process's part of the images: their codes, and their labels or None.

        Returns:
            The numbers of :func:`measure`, ``val_`` before each name, as means over the images of all processes.
        """
        model.eval()
        names = _names(self.num_granularities)
        total = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.world.device)
        for sequence, labels in batches:
            numbers = measure(self._forward(model, sequence, labels), len(sequence), self.num_granularities)
            total += torch.stack([*numbers.values(), torch.ones_like(numbers["loss"])]).double() * len(sequence)
        total = self.world.sum(total)
        return dict(zip([f"val_{name}" for name in names], (total[:-1] / total[-1]).tolist(), strict=True))

    def _forward(self, model: nn.Module, sequence: CodeSequence, labels: Tensor | None) -> PriorOutput:
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.autocast):
            output: PriorOutput = model(sequence, labels)
        return output


def _names(num_granularities: int) -> list[str]:
    each = [f"{kind}_loss_{g}" for g in range(num_granularities) for kind in ("content", "position")]
    return ["loss", "content_loss", "position_loss", "bits_per_image", *each]


@torch.no_grad()
def measure(output: PriorOutput, num_images: int, num_granularities: int) -> dict[str, Tensor]:
    """The numbers of a batch: its losses, those of each granularity, and the bits of an image.

    Args:
        output: What the prior returned for the batch.
        num_images: Images in the batch.
        num_granularities: Granularities of the model.

    Returns:
        Scalars, float32: ``loss``, ``content_loss``, ``position_loss``; ``bits_per_image``, which an ideal coder would
        spend on all contents and positions of an image, its special tokens included; ``content_loss_<g>`` and
        ``position_loss_<g>``, means over the tokens of granularity g in nats, 0 if there are none.
    """
    contents, positions = output.content_losses, output.position_losses
    positions = torch.zeros_like(contents) if positions is None else positions
    values = [output.loss.detach(), output.content_loss.detach(), output.position_loss.detach()]
    values.append((contents.double().sum() + positions.double().sum()).float() / (num_images * math.log(2)))
    for g in range(num_granularities):
        mine = output.targets.grains == g
        count = mine.sum().clamp_min(1)
        values += [torch.where(mine, losses, 0.0).sum() / count for losses in (contents, positions)]
    return dict(zip(_names(num_granularities), values, strict=True))
