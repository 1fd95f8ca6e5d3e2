"""From options to the parts of a tokenizer's run: the model, the step, the schedule."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dqcore.backends import choose_autocast, choose_device
from dqcore.data.images import uint8_to_float
from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.models.auto import TOKENIZERS, kind_of_preset
from dqcore.nn import perceptual
from dqcore.nn.discriminator import MIN_SIZE, PatchDiscriminator
from dqcore.training.average import WeightAverage
from dqcore.training.loop import CHECKPOINT
from dqcore.training.schedule import LearningRate, TimedLearningRate
from dqcore.training.tokenizer.images import TrainingImages
from dqcore.training.tokenizer.options import TokenizerTraining
from dqcore.training.tokenizer.recipes import RECIPES
from dqcore.training.tokenizer.step import LossWeights, TokenizerStep

log = logging.getLogger(__name__)

__all__ = ["check_image_size", "compile_networks", "fit_router", "new_model", "new_schedule", "new_step"]


def new_model(options: TokenizerTraining) -> nn.Module:
    """A model of the options' preset, changed as the options say, with the weights of ``init_from`` if given.

    A run that goes on has the weights of its checkpoint, so the others need not be there any more.

    Raises:
        ValueError: there is no such preset, it does not know an option, or the weights do not fit.
    """
    assert options.preset is not None
    kind = kind_of_preset(options.preset, TOKENIZERS, "tokenizer")
    known = {field.name for field in dataclasses.fields(kind.Config)}
    router = getattr(kind.PRESETS[options.preset], "router", "feature")
    if options.budget_weight is not None and router != "feature":
        raise InputError(f"budget_weight: preset {options.preset} has a router without a budget loss ({router})")
    model: nn.Module = kind.from_preset(options.preset, **options.model_overrides(known))
    if choose_device(options.device).type == "cpu":
        model = model.to(memory_format=torch.channels_last)
    if options.init_from is not None and not (options.resume and (options.out / CHECKPOINT).is_file()):
        _load_weights(model, kind, options)
    return model


def check_image_size(options: TokenizerTraining, model: nn.Module) -> None:
    """Refuse crop sizes that the networks cannot take.

    Raises:
        ValueError: a size is not a multiple of the model's coarsest stride, or too small for discriminator or LPIPS.
    """
    stride = max(getattr(getattr(model, "config", None), "strides", (1,)))
    for name in ("image_size", "resize"):
        size = getattr(options, name)
        if size % stride:
            raise InputError(f"{name}: expected a multiple of {stride}, the model's coarsest stride, got {size}")
    if options.discriminator and (options.image_size or 0) < MIN_SIZE:
        raise InputError(f"image_size: the discriminator needs at least {MIN_SIZE} pixels, got {options.image_size}")
    if options.perceptual == "lpips" and (options.image_size or 0) < perceptual.MIN_SIZE:
        raise InputError(f"image_size: LPIPS needs at least {perceptual.MIN_SIZE} pixels, got {options.image_size}")


def new_step(options: TokenizerTraining, world: World, model: nn.Module) -> TokenizerStep:
    """The step that trains a model, on this process's device. Networks get the first process's weights."""
    assert options.perceptual_weight is not None and options.adversarial_maximum is not None
    assert options.reconstruction is not None and options.recipe is not None
    model = model.to(world.device)
    distance = discriminator = average = None
    if options.perceptual == "lpips":
        distance = perceptual.PerceptualLoss(options.vgg_weights).to(world.device)
    if options.discriminator:
        discriminator = PatchDiscriminator(options.discriminator_dim).to(world.device)
        world.broadcast(discriminator)
    world.broadcast(model)
    if options.average_decay is not None:
        average = WeightAverage(model, options.average_decay)
    weights = LossWeights(
        perceptual=options.perceptual_weight,
        adversarial_maximum=options.adversarial_maximum,
        discriminator_start=options.discriminator_start,
        gradient_clip=options.gradient_clip,
        autocast=choose_autocast(options.precision, world.device),
        reconstruction=options.reconstruction,
    )
    return TokenizerStep(
        model,
        world,
        weights,
        betas=RECIPES[options.recipe].betas,
        discriminator=discriminator,
        perceptual=distance,
        average=average,
        accumulate=options.accumulate,
    )


def new_schedule(options: TokenizerTraining, steps_per_epoch: int, world: World) -> LearningRate | TimedLearningRate:
    """The learning rate of each step, and with it the length of the run.

    Unless ``learning_rate`` is given, its peak is ``base_learning_rate`` times the images of a global batch.

    Raises:
        ValueError: the run would have no step.
    """
    assert options.schedule is not None and options.batch_size is not None
    warmup = options.warmup_steps
    if warmup is None:
        warmup = round((options.warmup_epochs or 0) * steps_per_epoch)
    peak = options.learning_rate
    if peak is None:
        peak = (options.base_learning_rate or 0) * options.batch_size * options.accumulate * world.size
    if options.minutes is not None:
        return TimedLearningRate(peak, warmup, 60 * options.minutes, options.schedule)
    total = options.steps if options.steps is not None else round((options.epochs or 0) * steps_per_epoch)
    if total < 1:
        raise InputError(f"epochs: {options.epochs} of {steps_per_epoch} steps are less than one step")
    return LearningRate(peak, min(warmup, total), total, options.schedule)


def fit_router(options: TokenizerTraining, step: TokenizerStep, images: TrainingImages) -> None:
    """Fit an entropy router's thresholds to training crops, so that the target shares hold on these images.

    Nothing happens if the model has another router, or a fitted one.
    """
    router: Any = getattr(step.model, "router", None)
    if not hasattr(router, "fit") or getattr(router, "fitted", False):
        return
    assert options.batch_size is not None and options.threshold_images is not None
    crops = options.batch_size * options.accumulate * images.world.size
    steps = -(-options.threshold_images // crops)
    if images.world.is_main:
        log.info("fitting the router to %d crops", steps * crops)

    def batches() -> Iterator[Tensor]:
        for batch in images.batches(0, steps):
            everywhere = images.world.gather(batch.images)
            yield torch.cat([uint8_to_float(part) for part in everywhere]).to(images.world.device)

    router.fit(batches())
    if step.average is not None:
        step.average.module.load_state_dict(step.model.state_dict())


def compile_networks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile encoder and decoder in place.

    The quantizer is left out, because it changes its buffers; the last layer is left out as :class:`_NotCompiled` says.
    """
    last = model.get_submodule("decoder.conv_out")
    model.set_submodule("decoder.conv_out", _NotCompiled(last))
    for name in ("encoder", "decoder"):
        model.get_submodule(name).compile(backend=backend)


class _NotCompiled(nn.Module):
    """A layer that stays out of the compiled decoder.

    The adaptive weight needs a backward pass through only the last layer, and a compiled graph can only be passed
    through as a whole.

    Args:
        layer: The layer. It is not registered as a submodule: this module has the same parameters under the same names.
    """

    _layer: nn.Module

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = layer._parameters, layer._buffers, layer._modules
        object.__setattr__(self, "_layer", layer)

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        output: Tensor = self._layer(x)
        return output


def _load_weights(model: nn.Module, kind: type[Any], options: TokenizerTraining) -> None:
    donor = kind.from_pretrained(options.init_from)
    try:
        model.load_state_dict(donor.state_dict())
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise InputError(f"init_from: {options.init_from} does not fit preset {options.preset}: {problem}") from error
