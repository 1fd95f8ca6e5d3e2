"""Train a tokenizer on images, from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dqcore.backends import this_machine
from dqcore.codebook.modules import count_numbers
from dqcore.data.provenance import record_images
from dqcore.distributed import World, join_world
from dqcore.files import sole_owner
from dqcore.nn.perceptual import missing_for_perceptual
from dqcore.progress import counted
from dqcore.training.card import write_run_card
from dqcore.training.clock import Clock
from dqcore.training.log import Row
from dqcore.training.loop import Loop
from dqcore.training.record import RunRecord, check_unused
from dqcore.training.stage import default_device_on_cpu
from dqcore.training.tokenizer.build import (
    check_image_size,
    compile_networks,
    fit_router,
    new_model,
    new_schedule,
    new_step,
)
from dqcore.training.tokenizer.images import TrainingImages, find_images
from dqcore.training.tokenizer.options import FREE_ON_RESUME, TokenizerTraining
from dqcore.training.tokenizer.stage import TokenizerStage
from dqcore.training.tokenizer.tables import calibrate, can_calibrate, write_tables

log = logging.getLogger(__name__)

__all__ = ["TokenizerRun", "TokenizerTraining", "train_tokenizer"]


@dataclass(frozen=True)
class TokenizerRun:
    """A finished run.

    Attributes:
        path: Its folder: ``metrics.jsonl``, ``config.json``, ``model/`` (the weights to use), ``checkpoint.pt``.
        model: The weights to use, in evaluation mode: their moving average if the run kept one, else the last.
        metrics: The rows of ``metrics.jsonl``.
    """

    path: Path
    model: Any
    metrics: list[Row]


def train_tokenizer(
    options: TokenizerTraining,
    *,
    model: nn.Module | None = None,
    progress: Callable[[Row], object] | None = None,
    confirm: Callable[[str], bool] | None = None,
) -> TokenizerRun:
    """Train a tokenizer with the paper's losses (section 3.2; supplement, section 1).

    Under ``torchrun``, every process calls this with the same options. The caller's random state is left alone.

    Args:
        options: What to train, on what, and how.
        model: Train this model instead of a new one of ``options.preset``.
        progress: Called with each row of metrics; without it a terminal shows a bar, and elsewhere lines go to the log.
        confirm: Asked with a question, once, if the run turns out to take days; False stops it. None goes on.

    Returns:
        The run.

    Raises:
        ValueError: options, images or checkpoint do not fit, or another process trains here; nothing has been written.
        FileNotFoundError: a folder does not exist.
        PerceptualUnavailableError: LPIPS was asked for and its weights are not there.
        NonFiniteLossError: a loss became infinite or NaN; ``nonfinite.pt`` in the run's folder holds the batch, its
            file names and the state, and ``checkpoint.pt`` the last good one.
        StoppedError: SIGINT or SIGTERM came, or ``confirm`` said no; model and checkpoint were saved.

    Determinism: on the CPU, runs and resumed runs of a length in steps give the same bits for equal numbers of threads.
    """
    world = join_world(options.device, options.timeout)
    clock = Clock(world)
    options = _with_perceptual(options.resolved(this_machine(world.device)), world)
    with world.fork_rng(), default_device_on_cpu():
        torch.manual_seed(options.seed)
        check_unused(options.out, resume=options.resume)
        images = find_images(options, world)
        options = images.options
        model = new_model(options) if model is None else model
        check_image_size(options, model)
        step = new_step(options, world, model)
        learning_rate = new_schedule(options, images.steps_per_epoch, world)
        loop = Loop(TokenizerStage(options, world, images, step), options, clock, learning_rate, confirm=confirm)
        record = RunRecord(options, _about(model, images), model, images.description, "data", loop.total or 0, world)
        if world.is_main:
            log.info("%s", _summary(images, model))
        with sole_owner(options.out, "training") if world.is_main else contextlib.nullcontext():
            check_unused(options.out, resume=options.resume)  # again: another run may have ended meanwhile
            if options.resume and loop.checkpoint.is_file():
                record.check_same(options.out, free=FREE_ON_RESUME)
                loop.resume()
            else:
                fit_router(options, step, images)
                torch.manual_seed(options.seed + world.rank)
            if options.compile:
                compile_networks(model)
            record.write(options.out)
            rows = _run(loop, record, options.out, images, progress)
            _finish(loop.stage, record, rows)
        return TokenizerRun(options.out, step.model_to_use.eval(), rows)


def _run(
    loop: Loop, record: RunRecord, out: Path, images: TrainingImages, progress: Callable[[Row], object] | None
) -> list[Row]:
    """Run the loop. The folder gets the list of training images, and after a timed run its number of steps."""
    if record.world.is_main:
        record_images(out, images.training.paths)
    try:
        return loop.run(progress)
    finally:
        if loop.total is None:
            dataclasses.replace(record, total=loop.completed).write(out)


def _finish(stage: Any, record: RunRecord, rows: list[Row]) -> None:
    """Make what depends on the final weights: a gain router's thresholds, the tables for streams, the model card."""
    model = stage.step.model_to_use
    images = stage.some_images if record.world.is_main or can_calibrate(model) else []
    changed = calibrate(model, images)  # in every process, so that all go on with the same model
    folder = record.options.out / "model"
    if record.world.is_main:
        if changed:
            model.save_pretrained(folder)
        write_tables(model, images, folder)
        write_run_card(model, record, rows)


def _with_perceptual(options: TokenizerTraining, world: World) -> TokenizerTraining:
    """The options with LPIPS on if its weights are here, and else off, where that was left open."""
    if options.perceptual != "auto":
        return options
    if not (missing := missing_for_perceptual(options.vgg_weights)):
        return dataclasses.replace(options, perceptual="lpips")
    if world.is_main:
        log.warning("training without the perceptual loss. %s", missing)
    return dataclasses.replace(options, perceptual="none")


def _summary(images: TrainingImages, model: nn.Module) -> str:
    """What was chosen, in a line."""
    options, machine = images.options, this_machine(images.world.device)
    batch = counted(options.batch_size or 1, "crop")
    batch = f"{options.accumulate} x {batch}" if options.accumulate > 1 else batch
    return (
        f"recipe {options.recipe}: {options.preset}, {count_numbers(model)[0] / 1e6:.1f} M parameters; "
        f"{counted(len(images.training), 'image')} to train on, {len(images.validation)} held out; "
        f"{batch} of {options.image_size} pixels a step; {images.reading}; {machine}"
    )


def _about(model: nn.Module, images: TrainingImages) -> Row:
    """The entries of ``config.json`` about the model and the length of an epoch; the model may be a user's own."""
    config: Any = getattr(model, "config", None)
    described: Any = type(model).__name__
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        described = dataclasses.asdict(config)
    return {"model": described, "steps_per_epoch": images.steps_per_epoch}
