"""One training step of a prior, and the numbers that it reports."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dqcore.codes import CodeSequence
from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.models.priors.config import PriorOutput
from dqcore.ops.autocast import casting_once
from dqcore.training.average import WeightAverage
from dqcore.training.prior.processes import Replicated, Sharded
from dqcore.training.shards import flat, is_sharded, put, whole
from dqcore.training.stage import NonFiniteLossError, TrainingStep

__all__ = ["PriorStep", "measure"]


Part = tuple[CodeSequence, Tensor | None]


class PriorStep(TrainingStep):
    """A training step of a prior, and everything that it changes: AdamW with betas (0.9, 0.95) on packed batches.

    The batches of all processes count as one, token by token.

    Args:
        model: Prior; ``model(sequence, labels)`` returns a :class:`PriorOutput`. It may be sharded
            (:func:`dqcore.training.prior.processes.shard`), and so is the average then.
        world: This process and its device.
        weight_decay: Of the weights of linear layers.
        gradient_clip: Largest norm of the gradient, or None.
        autocast: Run the network in bfloat16.
        average: Moving average of the weights, updated after each step.
        accumulate: The most parts of a batch that go through the network one after the other.
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
        accumulate: int = 1,
    ) -> None:
        self.accumulate = accumulate
        self.limit = gradient_clip
        self.autocast = autocast
        linear = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
        others = [p for p in model.parameters() if p not in linear]
        decayed = [p for p in model.parameters() if p in linear]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)
        self.parameters = decayed + others
        super().__init__(model, world, average, optimizer=self.optimizer)
        self.sharded = any(map(is_sharded, self.parameters))
        self.processes = Sharded(model) if self.sharded else Replicated(model, world)

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
            The numbers of :func:`measure` for the batches of all processes together, and ``gradient_norm``.

        Raises:
            NonFiniteLossError: the loss or the gradient is infinite or NaN; no weight has changed.
        """
        self.model.train()
        parts = self._split(sequence, labels)
        counts = self._counts(parts)
        self.optimizer.zero_grad()
        with casting_once(self.world.device):
            for _ in range(len(parts), self.accumulate if self.sharded else 0):
                self._run_for_nothing(parts[0])
            sums = torch.stack([self._train_on(part, counts, last=part is parts[-1]) for part in parts]).sum(0)
        norm = whole(self._clip(self.parameters, self.limit))
        numbers = _numbers(self.world.sum(sums), self.num_granularities)
        numbers["gradient_norm"] = norm.double()
        row = dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(row[name]):
                raise NonFiniteLossError(name, completed + 1, row[name])
        self._update(self.optimizer, learning_rate)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return row

    def _split(self, sequence: CodeSequence, labels: Tensor | None) -> list[Part]:
        """The batch in at most ``accumulate`` parts of whole images."""
        if self.accumulate == 1:  # cutting a sequence would make the host wait
            return [(sequence, labels)]
        size = -(-len(sequence) // self.accumulate)
        cuts = [slice(start, start + size) for start in range(0, len(sequence), size)]
        return [(sequence[cut], None if labels is None else labels[cut]) for cut in cuts]

    def _counts(self, parts: list[Part]) -> Tensor | None:
        """Tokens of each granularity in all parts of all processes, ``(G,)``; None if there is one part in all."""
        if len(parts) == self.world.size == 1:
            return None
        model: Any = self.model
        return self.world.sum(torch.stack([model.token_counts(sequence) for sequence, _ in parts]).sum(0))

    def _train_on(self, part: Part, counts: Tensor | None, *, last: bool) -> Tensor:
        """Add the gradient of a part; after the last part, average over processes. Returns :func:`_sums` of it."""
        model: Any = self.model
        with contextlib.nullcontext() if last else self.processes.accumulating():
            output = self._forward(self.processes.model, *part)
            losses = output.content_loss, output.position_loss
            if counts is not None:
                losses = model.losses_within(output, counts)
            (self.world.size * (losses[0] + losses[1])).backward()  # the mean over processes is then their sum
        return _sums(output, losses, len(part[0]), self.num_granularities)

    def _run_for_nothing(self, part: Part) -> None:
        """Run a sharded network, which all processes must run equally often, without adding a gradient."""
        sequence, labels = part
        with self.processes.accumulating():
            output = self._forward(self.processes.model, sequence[:1], None if labels is None else labels[:1])
            (0.0 * (output.content_loss + output.position_loss)).backward()

    @property
    def num_granularities(self) -> int:
        """Granularities of the model."""
        config: Any = self.model.config
        return int(config.num_granularities)

    @torch.no_grad()
    def validate(self, model: nn.Module, batches: Iterable[tuple[CodeSequence, Tensor | None, int]]) -> dict[str, Any]:
        """Measure a model on held-out images; it is left in evaluation mode.

        Args:
            model: The prior to measure, in training or averaged.
            batches: This process's part of the images: codes, labels or None, and how many count: all, or none in a
                batch that is there only because other processes have one more.

        Returns:
            The numbers of :func:`measure`, ``val_`` before each name, of the images of all processes as of one batch:
            they do not depend on how the images are shared out.
        """
        tape: Any = model.eval().tape
        total = torch.zeros(3 + 3 * self.num_granularities, dtype=torch.float64, device=self.world.device)
        for sequence, labels, count in batches:
            output = self._forward(model, sequence, labels)
            losses = output.content_loss, output.position_loss
            total += _sums(output, losses, len(sequence), self.num_granularities) * (count > 0)
        total = _joined(self.world.sum(total), self.num_granularities, tape.coarse_to_fine)
        numbers = _numbers(total, self.num_granularities)
        return {f"val_{name}": value.item() for name, value in numbers.items()}

    def tensors(self) -> dict[str, dict[str, Any]]:
        """The tensors of model, optimiser and average, sharded or not, to be read or written in place."""
        for parameter in self.parameters:
            state = self.optimizer.state[parameter]
            if not state:  # as AdamW begins
                state["step"] = torch.zeros((), device=parameter.device)
                state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        moments = {str(i): self.optimizer.state[parameter] for i, parameter in enumerate(self.parameters)}
        average = {} if self.average is None else {"average": self.average.state_dict()}
        return {"model": self.model.state_dict(), "optimizer": moments, **average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state in one piece, whose tensors may be sharded here."""
        if not self.sharded:
            super().load_state_dict(state)
            return
        moments = {str(name): value for name, value in state["optimizer"]["state"].items()}
        before = flat({**state, "optimizer": moments})
        for name, target in flat(self.tensors()).items():
            if name not in before or before[name].shape != target.shape:
                raise InputError(f"checkpoint: its {name} does not fit this run")
            put(before[name], target)

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
        Scalars, float64: ``loss``, ``content_loss``, ``position_loss``; ``bits_per_image``, which an ideal coder would
        spend on all contents and positions of an image, its special tokens included; ``content_loss_<g>`` and
        ``position_loss_<g>``, means over the tokens of granularity g in nats, 0 if there are none.
    """
    losses = output.content_loss, output.position_loss
    return _numbers(_sums(output, losses, num_images, num_granularities), num_granularities)


@torch.no_grad()
def _sums(output: PriorOutput, losses: tuple[Tensor, Tensor], num_images: int, num_granularities: int) -> Tensor:
    """What the numbers are made of, float64, to be added up over the parts of a batch.

    Content loss, position loss, images; then tokens, content losses and position losses of each granularity.
    """
    contents, positions = output.content_losses, output.position_losses
    positions = torch.zeros_like(contents) if positions is None else positions
    first = torch.stack([*losses, losses[0].new_full((), num_images)]).double()
    rows = torch.stack([torch.ones_like(contents), contents, positions]).double()
    each = [torch.where(output.targets.grains == g, rows, 0.0).sum(1) for g in range(num_granularities)]
    return torch.cat([first, *each])


def _joined(sums: Tensor, num_granularities: int, coarse_to_fine: bool) -> Tensor:
    """The sums of many batches, with the losses of all of them as one; see :meth:`Prior.losses_within`."""
    tokens, contents, positions = sums[3:].view(num_granularities, 3).unbind(1)
    content, position = contents.sum() / tokens.sum(), positions.sum() / tokens.sum()
    if coarse_to_fine:
        position = (positions / tokens).mean()
    return torch.cat([torch.stack([content, position]), sums[2:]])


def _numbers(sums: Tensor, num_granularities: int) -> dict[str, Tensor]:
    """The numbers of :func:`measure` from the sums of :func:`_sums`."""
    content, position, images = sums[:3]
    each = sums[3:].view(num_granularities, 3)
    means = each[:, 1:] / each[:, :1].clamp_min(1)
    bits = each[:, 1:].sum() / (images * math.log(2))
    values = [content + position, content, position, bits, *means.flatten()]
    return dict(zip(_names(num_granularities), values, strict=True))
