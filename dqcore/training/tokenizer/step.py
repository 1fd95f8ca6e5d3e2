"""One training step of a tokenizer and its discriminator, with a single forward pass of the tokenizer for both."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dqcore.distributed import World
from dqcore.nn.discriminator import (
    PatchDiscriminator,
    adversarial_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from dqcore.nn.perceptual import PerceptualLoss
from dqcore.ops.autocast import casting_once
from dqcore.training.average import WeightAverage
from dqcore.training.stage import NonFiniteLossError, TrainingStep
from dqcore.training.tokenizer.parts import Output, forward_in_parts, gradient_at, one_batch
from dqcore.training.tokenizer.pixels import PIXEL_LOSSES

__all__ = ["LossWeights", "TokenizerStep"]

#: The order in which terms are checked for infinity and NaN: a term stands before those that are computed from it, so
#: that the error names the cause.
TERMS = (
    "reconstruction_loss",
    "perceptual_loss",
    "commitment_loss",
    "budget_loss",
    "adversarial_loss",
    "adversarial_weight",
    "gradient_norm",
    "loss",
    "discriminator_loss",
)


@dataclass(frozen=True)
class LossWeights:
    """How the terms add up: ``pixels + perceptual * LPIPS + w * adversarial + commitment + budget``.

    Attributes:
        reconstruction: The loss of pixels, a key of ``PIXEL_LOSSES``.
        perceptual: Weight of LPIPS.
        adversarial_maximum: Largest value of the adaptive weight w.
        discriminator_start: Step from which the discriminator is trained and the adversarial loss counts.
        gradient_clip: Largest norm of the tokenizer's gradient; None leaves it alone.
        autocast: Run the networks in bfloat16 where that is safe; losses stay in float32.
    """

    perceptual: float = 1.0
    adversarial_maximum: float = 0.75
    discriminator_start: int = 0
    gradient_clip: float | None = None
    autocast: bool = False
    reconstruction: str = "l1"


class TokenizerStep(TrainingStep):
    """A training step of a tokenizer, and everything that it changes.

    Args:
        model: Tokenizer. ``model(images)`` returns a value with ``.reconstruction``, ``.commitment_loss``,
            ``.budget_loss``, ``.codes`` and ``.grain``; the last layer is ``model.decoder.conv_out``.
        world: This process and its device.
        weights: How the losses add up.
        betas: Adam's betas, for both networks.
        discriminator: None trains without one.
        perceptual: None trains without LPIPS.
        average: Moving average of the weights, updated after each step.
        accumulate: Parts of a batch that go through the tokenizer one after the other. Their results are those of the
            whole batch: discriminator, budget and codebook see all of it. (A gain router meets its shares in each part
            by itself.) Each part is computed twice, because its gradient is known only then.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        weights: LossWeights,
        *,
        betas: tuple[float, float] = (0.5, 0.9),
        discriminator: PatchDiscriminator | None = None,
        perceptual: PerceptualLoss | None = None,
        average: WeightAverage | None = None,
        accumulate: int = 1,
    ) -> None:
        self.accumulate = accumulate
        self.weights, self.discriminator, self.perceptual = weights, discriminator, perceptual
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Fused: unfused, Adam takes an eighth of a small network's step on a CPU.
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.0, betas=betas, fused=True)
        self.adversary = (
            None if discriminator is None else torch.optim.Adam(discriminator.parameters(), 0.0, betas, fused=True)
        )
        others = {"optimizer": self.optimizer, "discriminator": discriminator, "adversary": self.adversary}
        super().__init__(model, world, average, **others)

    def __call__(self, images: Tensor, completed: int, learning_rate: float) -> dict[str, Any]:
        """Train on a batch.

        Args:
            images: ``(B, 3, H, W)`` float32 in [-1, 1].
            completed: Steps done before this one.
            learning_rate: For both optimisers.

        Returns:
            Every term of the loss, the discriminator's mean logits, and ``ratios``, the share of regions at each
            granularity; all are means over all processes.

        Raises:
            NonFiniteLossError: a term or the gradient is infinite or NaN; no weight has changed.
        """
        adversarial = self.discriminator is not None and completed >= self.weights.discriminator_start
        self.model.train()
        with casting_once(self.world.device):
            with one_batch(self.model, images, self.accumulate, self.world):
                terms, reconstruction, grain = self._tokenizer_losses(images, adversarial)
            if adversarial:
                terms |= self._discriminator_losses(images, reconstruction)
        self.world.average_gradients(self.parameters)
        terms["gradient_norm"] = self._clip(self.parameters, self.weights.gradient_clip)
        numbers = self._numbers(terms, self._ratios(grain), completed)
        self._update(self.optimizer, learning_rate)
        if adversarial and self.adversary is not None:
            self._update(self.adversary, learning_rate)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return numbers

    def _tokenizer_losses(self, images: Tensor, adversarial: bool) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Compute the tokenizer's losses, and its gradients with a single backward pass.

        ::

            images -> tokenizer -> reconstruction | cut | -> pixels, LPIPS, discriminator
                               -> commitment, budget

        The losses of the image are computed from a copy of the reconstruction that is cut off the tokenizer, so their
        backward passes end there. What they give, weighted and added up, goes back through the tokenizer from the
        reconstruction, together with the gradients of commitment and budget.

        Returns:
            The terms, the reconstruction ``(B, 3, H, W)`` float32, detached, and the grain map or None.
        """
        output = self._forward(images)
        cut = output.reconstruction.detach().float().requires_grad_()
        terms, image_loss, gradient = self._image_losses(images, cut)
        terms |= {"commitment_loss": output.commitment_loss.float(), "budget_loss": output.budget_loss.float()}
        regularisers = terms["commitment_loss"] + terms["budget_loss"]
        total = image_loss + regularisers.detach()
        if adversarial:
            loss, pull = self._adversarial_gradient(cut)
            weight = self._adversarial_weight(output, gradient, pull)
            terms |= {"adversarial_loss": loss, "adversarial_weight": weight}
            total, gradient = total + weight * loss, gradient + weight * pull
        terms["loss"] = total
        self.optimizer.zero_grad()
        starts = [output.reconstruction, regularisers]
        torch.autograd.backward(starts, [gradient.to(output.reconstruction.dtype), torch.ones_like(total)])
        return terms, cut.detach(), output.grain

    def _image_losses(self, images: Tensor, reconstruction: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The losses of pixels and of LPIPS, their weighted sum, and its gradient for the reconstruction."""
        terms = {"reconstruction_loss": PIXEL_LOSSES[self.weights.reconstruction](images, reconstruction)}
        loss = terms["reconstruction_loss"]
        if self.perceptual is not None:
            terms["perceptual_loss"] = self.perceptual(images, reconstruction).mean()
            loss = loss + self.weights.perceptual * terms["perceptual_loss"]
        (gradient,) = torch.autograd.grad(loss, reconstruction)
        return terms, loss.detach(), gradient

    def _forward(self, images: Tensor) -> Output:
        """The tokenizer's output for a batch, which may go through it in parts."""
        with self._autocast():
            if self.accumulate > 1:
                return forward_in_parts(self.model, images, self.accumulate)
            out = self.model(images)
            return Output(out.reconstruction, out.commitment_loss, out.budget_loss, out.grain)

    def _adversarial_gradient(self, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's loss, and its gradient with respect to the reconstruction."""
        assert self.discriminator is not None
        self.discriminator.train().requires_grad_(False)
        with self._autocast():
            logits = self.discriminator(reconstruction)
        loss = hinge_generator_loss(logits)
        (pull,) = torch.autograd.grad(loss, reconstruction)
        self.discriminator.requires_grad_(True)
        return loss.detach(), pull

    def _adversarial_weight(self, output: Output, gradient: Tensor, pull: Tensor) -> Tensor:
        """The adaptive weight of the adversarial loss.

        It compares the gradients of both losses at the weights of the last layer, so the backward pass goes through
        that layer alone.

        Args:
            output: The model's output, with history.
            gradient: Gradient of the other image losses with respect to it, float32.
            pull: Gradient of the adversarial loss with respect to it, float32.
        """
        layer: Any = self.model.get_submodule("decoder.conv_out")

        def at_last(values: Tensor) -> Tensor:
            with self._autocast():
                return self.world.mean(gradient_at(layer, output, values))

        return adversarial_weight(at_last(gradient), at_last(pull), self.weights.adversarial_maximum)

    def _discriminator_losses(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Compute the discriminator's loss and its gradients."""
        assert self.discriminator is not None and self.adversary is not None
        with self._autocast():
            real, fake = self.discriminator(images), self.discriminator(reconstruction)
        loss = hinge_discriminator_loss(real, fake)
        self.adversary.zero_grad()
        loss.backward()
        self.world.average_gradients(self.discriminator.parameters())
        return {"discriminator_loss": loss, "logits_real": real.float().mean(), "logits_fake": fake.float().mean()}

    def _numbers(self, terms: dict[str, Tensor], ratios: Tensor, completed: int) -> dict[str, Any]:
        """The step's numbers on the CPU, means over processes. Only here does the step wait for the device."""
        values = torch.stack([value.detach().float() for value in terms.values()])
        means = self.world.mean(torch.cat([values, ratios])).tolist()
        numbers: dict[str, Any] = dict(zip(terms, means, strict=False))
        for name in TERMS:
            if not math.isfinite(numbers.get(name, 0.0)):
                raise NonFiniteLossError(name, completed + 1, numbers[name])
        shares = means[len(terms) :]
        return numbers | {"ratios": shares, "fine_ratio": shares[-1]}

    def _ratios(self, grain: Tensor | None) -> Tensor:
        """Share of regions at each granularity, ``(G,)`` float32."""
        if grain is None:
            return torch.ones(1, device=self.world.device)
        count = getattr(getattr(self.model, "quantizer", None), "num_granularities", 1)
        return torch.stack([(grain == g).float().mean() for g in range(count)])

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.weights.autocast)
