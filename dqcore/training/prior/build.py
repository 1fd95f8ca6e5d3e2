"""From options to the parts of a prior's run: the model, the stage, the schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dqcore.backends import choose_autocast
from dqcore.data.codes import CachedCodes
from dqcore.data.splits import least_held_out
from dqcore.data.token_batches import TokenBatches
from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.models.auto import PRIORS, TOKENIZERS, kind_of_preset, load_saved
from dqcore.training.average import WeightAverage
from dqcore.training.prior.codes import tokenizer_folder
from dqcore.training.prior.options import PriorTraining
from dqcore.training.prior.processes import shard
from dqcore.training.prior.stage import PriorStage
from dqcore.training.prior.start import start_from_codes
from dqcore.training.prior.step import PriorStep
from dqcore.training.record import held_out_before
from dqcore.training.schedule import LearningRate, TimedLearningRate

__all__ = ["compile_blocks", "new_prior", "new_schedule", "new_stage", "start"]


def new_prior(options: PriorTraining, codes: CachedCodes) -> Any:
    """A prior of the preset for these codes, with new weights.

    Raises:
        ValueError: There is no such preset, or it has no layers of a kind that was asked for.
    """
    assert options.preset is not None
    kind = kind_of_preset(options.preset, PRIORS, "prior")
    rows, columns = codes.region_grid
    longest = (rows * columns << 2 * (codes.num_granularities - 1)) + 2 * codes.num_granularities
    changes: dict[str, Any] = {
        "codebook_size": codes.codebook_size,
        "region_grid": codes.region_grid,
        "num_granularities": codes.num_granularities,
        "num_classes": len(codes.classes),
        "label_dropout": options.label_dropout,
        "max_steps": max(longest, kind.PRESETS[options.preset].max_steps),
        "tokenizer": codes.tokenizer,
    }
    for name in ("dropout", "position_layers", "content_layers"):
        if (value := getattr(options, name)) is not None:
            if not hasattr(kind.PRESETS[options.preset], name):
                raise InputError(f"{name}: preset {options.preset} has no such thing")
            changes[name] = value
    model = kind.from_preset(options.preset, **changes)
    model.checkpoint_activations(options.checkpoint_activations)
    return model


def start(options: PriorTraining, model: Any) -> None:
    """Give a new prior the initial embeddings that the options ask for.

    Raises:
        InputError: They are those of codes, and there is no tokenizer.
    """
    if options.start != "codes":
        return
    if options.tokenizer is None:
        raise InputError("start: codes needs the tokenizer, whose codebook the embeddings are made of")
    tokenizer: Any = load_saved(tokenizer_folder(options), TOKENIZERS)
    start_from_codes(model, tokenizer.quantizer.codes, options.seed)


def new_stage(options: PriorTraining, world: World, codes: CachedCodes, model: Any) -> PriorStage:
    """The stage that trains a model on codes, on this process's device. The model gets the first process's weights.

    Raises:
        ValueError: No image is left to train on, or there are fewer batches than processes.
    """
    assert options.views is not None and options.token_budget is not None
    model = model.to(world.device)
    world.broadcast(model)
    autocast = choose_autocast(options.precision, world.device)
    average = None if options.average_decay is None else WeightAverage(model, options.average_decay)
    if options.shard and world.size > 1:
        for module in [model] if average is None else [model, average.module]:
            shard(module, world, autocast=autocast)
    step = PriorStep(
        model,
        world,
        weight_decay=options.weight_decay,
        gradient_clip=options.gradient_clip,
        autocast=autocast,
        average=average,
        accumulate=options.accumulate,
    )
    training, held_out = _split(codes, options)
    lengths = codes.lengths[training] + getattr(model.tape, "num_specials", 1)
    budget = options.token_budget * options.accumulate
    batches = TokenBatches(lengths, budget, seed=options.seed, rank=world.rank, processes=world.size)
    return PriorStage(options, world, codes, training, held_out, batches, step)


def new_schedule(options: PriorTraining, batches: TokenBatches) -> LearningRate | TimedLearningRate:
    """The learning rate of each step, and with it the length of the run."""
    assert options.learning_rate is not None and options.warmup_steps is not None
    if options.minutes is not None:
        seconds = 60 * options.minutes
        return TimedLearningRate(options.learning_rate, options.warmup_steps, seconds, options.schedule)
    total = options.steps if options.steps is not None else max(1, batches.total(options.epochs or 0))
    return LearningRate(options.learning_rate, min(options.warmup_steps, total), total, options.schedule)


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of a prior's transformers in place."""
    for part in model.children():
        for block in getattr(part, "blocks", []):
            block.compile(dynamic=True)


def _split(codes: CachedCodes, options: PriorTraining) -> tuple[Tensor, Tensor]:
    """Choose held-out images. Of the others all views are trained on; of these only the first view is used.

    Returns:
        The numbers of the images to train on and of the held-out ones, ``(n,)`` and ``(m,)`` int64.
    """
    views, share = options.views or 1, options.validation_share
    count = len(codes) // views
    order = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed))
    least = held_out_before(options.out, resume=options.resume) or least_held_out(count)
    held = max(least, round(share * count)) if share else 0
    if held >= count:
        raise InputError(f"validation_share: holding out {held} of {count} images leaves none to train on")
    training = order[held:].sort().values
    return torch.cat([training + view * count for view in range(views)]), order[:held].sort().values
