"""From options to the parts of a run: the model, its trainer, its schedule."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dqcore.backends import choose_autocast
from dqcore.data.images import uint8_to_float
from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.models.tokenizers.vqgan import VQGAN
from dqcore.nn.discriminator import MIN_SIZE, PatchDiscriminator
from dqcore.nn.perceptual import PerceptualLoss
from dqcore.training.average import WeightAverage
from dqcore.training.schedule import LearningRate
from dqcore.training.tokenizer.images import TrainingImages
from dqcore.training.tokenizer.options import TokenizerTraining
from dqcore.training.tokenizer.recipes import RECIPES
from dqcore.training.tokenizer.step import LossWeights, TokenizerStep

TOKENIZERS: tuple[type[Any], ...] = (DQVAE, VQGAN)


def new_model(options: TokenizerTraining) -> nn.Module:
    """A model of the preset with the options' changes, with the weights of ``init_from`` if given.

    Raises:
        ValueError: no such preset, a change that it does not know, or weights that do not fit.
    """
    for kind in TOKENIZERS:
        if options.preset in kind.PRESETS:
            known = {field.name for field in dataclasses.fields(kind.Config)}
            model: nn.Module = kind.from_preset(options.preset, **options.model_overrides(known))
            if options.init_from is not None:
                _load_weights(model, kind, options)
            return model
    names = [name for kind in TOKENIZERS for name in kind.PRESETS]
    nearest = difflib.get_close_matches(options.preset, names, n=1, cutoff=0.0)[0]
    raise InputError(
        f"preset: no tokenizer is called {options.preset!r}; the nearest is {nearest!r} of {', '.join(names)}"
    )


def check_image_size(options: TokenizerTraining, model: nn.Module) -> None:
    """Refuse crop sizes that the networks cannot take.

    Raises:
        ValueError: not a multiple of the model's coarsest stride, or too small for the discriminator.
    """
    stride = max(getattr(getattr(model, "config", None), "strides", (1,)))
    for name in ("image_size", "resize"):
        size = getattr(options, name)
        if size % stride:
            raise InputError(f"{name}: expected a multiple of {stride}, the model's coarsest stride, got {size}")
    if options.discriminator and options.image_size < MIN_SIZE:
        raise InputError(f"image_size: the discriminator needs at least {MIN_SIZE} pixels, got {options.image_size}")


def new_trainer(options: TokenizerTraining, world: World, model: nn.Module) -> TokenizerStep:
    """Everything that a step needs, on the run's device, the same in every process."""
    assert options.perceptual_weight is not None and options.adversarial_maximum is not None
    model = model.to(world.device)
    perceptual = discriminator = average = None
    if options.perceptual == "lpips":
        perceptual = PerceptualLoss(options.vgg_weights).to(world.device)
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
    )
    return TokenizerStep(
        model,
        world,
        weights,
        betas=RECIPES[options.recipe].betas,
        discriminator=discriminator,
        perceptual=perceptual,
        average=average,
    )


def new_schedule(options: TokenizerTraining, steps_per_epoch: int, world: World) -> tuple[int, LearningRate]:
    """Steps of the run, and its learning rate: the base rate times the images of a global batch."""
    assert options.schedule is not None
    total = options.steps if options.steps is not None else round((options.epochs or 0) * steps_per_epoch)
    if total < 1:
        raise InputError(f"epochs: {options.epochs} of {steps_per_epoch} steps are less than one step")
    warmup = options.warmup_steps
    if warmup is None:
        warmup = round((options.warmup_epochs or 0) * steps_per_epoch)
    peak = options.learning_rate
    if peak is None:
        peak = (options.base_learning_rate or 0) * options.batch_size * world.size
    return total, LearningRate(peak, min(warmup, total), total, options.schedule)


def fit_router(options: TokenizerTraining, trainer: TokenizerStep, images: TrainingImages) -> None:
    """Fit an entropy router's thresholds to random training crops, so that the target shares hold on this data."""
    router: Any = getattr(trainer.model, "router", None)
    if not hasattr(router, "fit") or getattr(router, "fitted", False):
        return
    steps = -(-options.threshold_images // (options.batch_size * images.world.size))

    def batches() -> Iterator[Tensor]:
        for batch in images.batches(0, steps):
            everywhere = images.world.gather(batch.images)
            yield torch.cat([uint8_to_float(part) for part in everywhere]).to(images.world.device)

    router.fit(batches())
    if trainer.average is not None:
        trainer.average.module.load_state_dict(trainer.model.state_dict())


def compile_networks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile encoder and decoder in place; the quantizer, which changes its buffers, and the last layer stay out."""
    last: Any = model.get_submodule("decoder.conv_out")
    last.forward = torch.compiler.disable(last.forward)  # the adaptive weight passes back through this layer alone
    for name in ("encoder", "decoder"):
        model.get_submodule(name).compile(backend=backend)


def _load_weights(model: nn.Module, kind: type[Any], options: TokenizerTraining) -> None:
    donor = kind.from_pretrained(options.init_from)
    try:
        model.load_state_dict(donor.state_dict())
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise InputError(f"init_from: {options.init_from} does not fit preset {options.preset}: {problem}") from error
