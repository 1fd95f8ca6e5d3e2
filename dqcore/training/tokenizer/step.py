"""One training step of a tokenizer and its discriminator: one forward pass of the tokenizer serves both optimisers."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.nn.discriminator import (
    PatchDiscriminator,
    adversarial_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from dqcore.nn.perceptual import PerceptualLoss
from dqcore.training.average import WeightAverage
from dqcore.training.loop import NonFiniteLossError

#: Terms in the order in which a non-finite one is looked for: causes before what they spread to.
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
    """How the terms add up: ``L1 + perceptual * LPIPS + w * adversarial + commitment + budget``.

    Attributes:
        perceptual: Weight of LPIPS.
        adversarial_maximum: Cap of the adaptive weight w.
        discriminator_start: Step from which the discriminator learns and is listened to.
        gradient_clip: Largest norm of the tokenizer's gradient; None leaves it alone.
        autocast: Run the networks in bfloat16 where that is safe; losses stay in float32.
    """

    perceptual: float = 1.0
    adversarial_maximum: float = 0.75
    discriminator_start: int = 0
    gradient_clip: float | None = None
    autocast: bool = False


class TokenizerStep:
    """Everything that a training step changes, and the step.

    Args:
        model: Tokenizer; ``model(images)`` has ``.reconstruction``, ``.commitment_loss``, ``.budget_loss``, ``.codes``
            and ``.grain``; ``model.decoder.conv_out`` is its last layer.
        world: This process and its device.
        weights: How the losses add up.
        betas: Adam's, for both networks.
        discriminator: None trains without an adversary.
        perceptual: None trains without LPIPS.
        average: Weight average to keep up to date.
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
    ) -> None:
        self.model, self.world, self.weights = model, world, weights
        self.discriminator, self.perceptual, self.average = discriminator, perceptual, average
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.0, betas=betas)
        self.adversary = None if discriminator is None else torch.optim.Adam(discriminator.parameters(), 0.0, betas)

    def __call__(self, images: Tensor, step: int, learning_rate: float) -> dict[str, Any]:
        """Train on a batch.

        Args:
            images: ``(B, 3, H, W)`` float32 in [-1, 1].
            step: Steps done before this one.
            learning_rate: For both optimisers.

        Returns:
            Means over all processes of every term, of the discriminator's logits, and ``ratios``, the share of
            regions at each granularity.

        Raises:
            NonFiniteLossError: before any optimiser has moved.
        """
        adversarial = self.discriminator is not None and step >= self.weights.discriminator_start
        self.model.train()
        terms, reconstruction, grain = self._tokenizer_losses(images, adversarial)
        self.world.average_gradients(self.parameters)
        terms["gradient_norm"] = self._clip()
        if adversarial:
            terms |= self._discriminator_losses(images, reconstruction)
        levels = getattr(getattr(self.model, "quantizer", None), "num_granularities", 1)
        ratios = _shares(grain, levels) if grain is not None else images.new_ones(1)
        numbers = self._numbers(terms, ratios, step)
        self._update(self.optimizer, learning_rate)
        if adversarial and self.adversary is not None:
            self._update(self.adversary, learning_rate)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers and the weight average."""
        parts = {"model": self.model, "optimizer": self.optimizer, **self._optional_parts()}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; it must have the same parts.

        Raises:
            ValueError: it has not.
        """
        parts = {"model": self.model, "optimizer": self.optimizer, **self._optional_parts()}
        for name, part in parts.items():
            try:
                part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise InputError(
                    f"checkpoint: its {name} does not fit this run: {str(error).splitlines()[0]}"
                ) from error

    def _optional_parts(self) -> dict[str, Any]:
        parts = {"discriminator": self.discriminator, "adversary": self.adversary, "average": self.average}
        return {name: part for name, part in parts.items() if part is not None}

    def _tokenizer_losses(self, images: Tensor, adversarial: bool) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Gradients of the tokenizer: the image losses go back to the reconstruction first, then once through it."""
        with self._autocast():
            output = self.model(images)
        surface = output.reconstruction.detach().float().requires_grad_()
        terms = {"reconstruction_loss": (images - surface).abs().mean()}
        image_loss = terms["reconstruction_loss"]
        if self.perceptual is not None:
            terms["perceptual_loss"] = self.perceptual(images, surface).mean()
            image_loss = image_loss + self.weights.perceptual * terms["perceptual_loss"]
        (gradient,) = torch.autograd.grad(image_loss, surface)
        terms |= {"commitment_loss": output.commitment_loss.float(), "budget_loss": output.budget_loss.float()}
        regularisers = terms["commitment_loss"] + terms["budget_loss"]
        total = image_loss.detach() + regularisers.detach()
        if adversarial:
            loss, pull = self._adversarial_gradient(surface)
            weight = self._adversarial_weight(output.reconstruction, gradient, pull)
            gradient = gradient + weight * pull
            terms |= {"adversarial_loss": loss, "adversarial_weight": weight}
            total = total + weight * loss
        terms["loss"] = total
        self.optimizer.zero_grad()
        torch.autograd.backward(
            [output.reconstruction, regularisers], [gradient.to(output.reconstruction.dtype), torch.ones_like(total)]
        )
        return terms, surface.detach(), output.grain

    def _adversarial_gradient(self, surface: Tensor) -> tuple[Tensor, Tensor]:
        assert self.discriminator is not None
        self.discriminator.train().requires_grad_(False)
        with self._autocast():
            logits = self.discriminator(surface)
        loss = hinge_generator_loss(logits)
        (pull,) = torch.autograd.grad(loss, surface)
        self.discriminator.requires_grad_(True)
        return loss.detach(), pull

    def _adversarial_weight(self, reconstruction: Tensor, gradient: Tensor, pull: Tensor) -> Tensor:
        """The adaptive weight at the last layer; only that layer is passed through backwards."""
        last: Any = self.model.get_submodule("decoder.conv_out").weight

        def at_last(values: Tensor) -> Tensor:
            (result,) = torch.autograd.grad(reconstruction, last, values.to(reconstruction.dtype), retain_graph=True)
            return self.world.mean(result.float())

        return adversarial_weight(at_last(gradient), at_last(pull), self.weights.adversarial_maximum)

    def _discriminator_losses(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        assert self.discriminator is not None and self.adversary is not None
        with self._autocast():
            real, fake = self.discriminator(images), self.discriminator(reconstruction)
        loss = hinge_discriminator_loss(real, fake)
        self.adversary.zero_grad()
        loss.backward()
        self.world.average_gradients(self.discriminator.parameters())
        return {"discriminator_loss": loss, "logits_real": real.float().mean(), "logits_fake": fake.float().mean()}

    def _numbers(self, terms: dict[str, Tensor], ratios: Tensor, step: int) -> dict[str, Any]:
        """Terms on the CPU, as means over processes: the step's one wait for the device."""
        values = torch.stack([value.detach().float() for value in terms.values()])
        means = self.world.mean(torch.cat([values, ratios])).tolist()
        numbers: dict[str, Any] = dict(zip(terms, means, strict=False))
        for name in TERMS:
            if not math.isfinite(numbers.get(name, 0.0)):
                raise NonFiniteLossError(name, step + 1, numbers[name])
        shares = means[len(terms) :]
        return numbers | {"ratios": shares, "fine_ratio": shares[-1]}

    def _clip(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.weights.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.weights.gradient_clip, norm)
        return norm

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.weights.autocast)

    @staticmethod
    def _update(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()


def _shares(grain: Tensor, levels: int) -> Tensor:
    """Share of regions at each granularity, ``(levels,)`` float32."""
    return torch.stack([(grain == level).float().mean() for level in range(levels)])
