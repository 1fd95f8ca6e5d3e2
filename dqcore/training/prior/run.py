"""Train a prior on the codes of images, from top to bottom."""

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
from dqcore.distributed import join_world
from dqcore.errors import InputError
from dqcore.files import sole_owner
from dqcore.progress import counted
from dqcore.training.card import write_run_card
from dqcore.training.clock import Clock
from dqcore.training.log import Row
from dqcore.training.loop import CHECKPOINT, Loop
from dqcore.training.prior.build import compile_blocks, new_prior, new_schedule, new_stage, start
from dqcore.training.prior.codes import copy_tokenizer, training_codes
from dqcore.training.prior.options import FREE_ON_RESUME, PriorTraining
from dqcore.training.prior.stage import PriorStage
from dqcore.training.record import RunRecord, check_options, check_outside, check_unused
from dqcore.training.stage import default_device_on_cpu

log = logging.getLogger(__name__)

__all__ = ["PriorRun", "PriorTraining", "train_prior"]


@dataclass(frozen=True)
class PriorRun:
    """A finished run.

    Attributes:
        path: Its folder: ``metrics.jsonl``, ``config.json``, ``model/`` (the weights to use, with the tokenizer in
            ``model/tokenizer/``), ``checkpoint.pt``.
        model: The weights to use, in evaluation mode.
        metrics: The rows of ``metrics.jsonl``.
        classes: Names of the classes, by label.
    """

    path: Path
    model: Any
    metrics: list[Row]
    classes: tuple[str, ...]


def train_prior(
    options: PriorTraining,
    *,
    progress: Callable[[Row], object] | None = None,
    confirm: Callable[[str], bool] | None = None,
) -> PriorRun:
    """Train a prior with the paper's losses (section 3.3; supplement, section 1) on packed batches.

    Under ``torchrun``, every process calls this with the same options. The caller's random state is left alone.

    Args:
        options: What to train, on what, and how.
        progress: Called with each row of metrics; without it a terminal shows a bar, and elsewhere lines go to the log.
        confirm: Asked with a question, once, if the run turns out to take days; False stops it. None goes on.

    Raises:
        ValueError: Options, codes, tokenizer or checkpoint do not fit each other, or another process trains in this
            folder.
        FileNotFoundError: A folder does not exist.
        NonFiniteLossError: A loss became infinite or NaN; ``nonfinite.pt`` in the run's folder holds the batch and the
            state, and ``checkpoint.pt`` the last good one.
        StoppedError: SIGINT or SIGTERM came, or ``confirm`` said no; model and checkpoint were saved.

    Determinism: on the CPU, runs and resumed runs of a length in steps or epochs give the same bits for equal numbers
    of threads.
    """
    world = join_world(options.device, options.timeout)
    clock, machine = Clock(world), this_machine(world.device)
    options = options.resolved(machine)
    alone = sole_owner(options.out, "training") if world.is_main else contextlib.nullcontext()
    with world.fork_rng(), default_device_on_cpu(), alone:
        if world.is_main:
            _check_folder(options)
            copy_tokenizer(options)
        world.barrier()
        codes = training_codes(options, world)
        torch.manual_seed(options.seed)
        model = new_prior(options, codes)
        goes_on = options.resume and (options.out / CHECKPOINT).is_file()
        if not goes_on:
            start(options, model)
        about = {"model": {"kind": type(model).__name__, **dataclasses.asdict(model.config)}}
        stage = new_stage(options, world, codes, model)
        if world.is_main:
            log.info("%s; %s", _summary(options, stage, model), machine)
        learning_rate = new_schedule(options, stage.token_batches)
        loop = Loop(stage, options, clock, learning_rate, confirm=confirm)
        record = RunRecord(options, about, model, stage.description, "codes", loop.total or 0, world)
        torch.manual_seed(options.seed + world.rank)
        if goes_on:
            record.check_same(options.out, free=FREE_ON_RESUME)
            loop.resume()
        if options.compile:
            compile_blocks(model)
        record.write(options.out)
        rows = _run(loop, record, options.out, progress)
        finished = stage.finished_model(everywhere=True)
        if world.is_main:
            write_run_card(finished, record, rows)
        return PriorRun(options.out, finished.eval(), rows, codes.classes)


def _summary(options: PriorTraining, stage: PriorStage, model: nn.Module) -> str:
    """What was chosen, in a line."""
    split = (
        f"{counted(len(stage.training) // (options.views or 1), 'image')} to train on, {len(stage.held_out)} held out"
    )
    return (
        f"recipe {options.recipe}: {options.preset}, {count_numbers(model)[0] / 1e6:.1f} M parameters; "
        f"{split}; {options.token_budget} tokens a step"
    )


def _check_folder(options: PriorTraining) -> None:
    """Raise if the run would write where it may not, or goes on with other options: before any code is made anew."""
    check_unused(options.out, resume=options.resume)
    check_outside(options.out, options.data)
    if options.codes is not None and options.out.resolve() == options.codes.resolve():
        raise InputError(f"out: {options.out} holds the codes themselves; choose another folder")
    if options.resume and (options.out / CHECKPOINT).is_file():
        check_options(options, options.out, free=FREE_ON_RESUME)


def _run(loop: Loop, record: RunRecord, out: Path, progress: Callable[[Row], object] | None) -> list[Row]:
    """Run the loop. After a timed run the folder gets its number of steps."""
    try:
        return loop.run(progress)
    finally:
        if loop.total is None:
            dataclasses.replace(record, total=loop.completed).write(out)
