"""``dqcore demo``: a small DQ-VAE, trained on the photographs that ship with the package while you wait.

Its router goes by the entropy of each region (the paper's repository calls that its better version), with thresholds
fitted to the training photographs. In the minutes that a demo has, the learned router does not yet follow detail: its
gradient needs many more steps.

Then a small DQ-Transformer learns the codes (:mod:`dqcore.cli.demo.prior`), and the report shows what it draws.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dqcore.cli.demo.prior import galleries, train_demo_prior
from dqcore.data.photos import sample_folder
from dqcore.errors import InputError
from dqcore.files import write_json
from dqcore.inference.measure import Evaluation
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.report.run import report_run
from dqcore.training import TokenizerTraining, train_tokenizer

__all__ = ["DemoResult", "run_demo"]

PRESET = "dqvae-dual-entropy-tiny"
STEPS = 1000
#: What differs from the preset: narrower, so that one core manages eight steps a second.
NETWORK: dict[str, Any] = {
    "dim": 32,
    "latent_channels": 32,
    "encoder_multipliers": (1, 1, 2, 2, 2),
    "decoder_multipliers": (1, 1, 2, 2),
    "encoder_attention": (16,),
    "decoder_attention": (),
    "groups": 4,
    "position": "none",  # trained on crops, used on whole photographs
    "initialisation": "kmeans",
    "restart": True,
    "decay": 0.98,  # a short run: the codebook must keep up with the encoder
    "resolution": 128,
}


@dataclass(frozen=True)
class DemoResult:
    """A finished demo.

    Attributes:
        page: The report.
        evaluation: Measured on the held-out photographs.
        target_ratio: Share of fine regions that the router was fitted for.
        seconds: Wall time of training and report.
    """

    page: Path
    evaluation: Evaluation
    target_ratio: float
    seconds: float


def run_demo(
    *, out: Path = Path("runs/demo"), seed: int = 0, steps: int | None = None, prior: bool = True
) -> DemoResult:
    """Train, measure, write ``report.html`` and ``evaluation.json``, and print the numbers.

    Args:
        out: Folder of the run; a demo that lies there is replaced.
        seed: Of weights, crops and order.
        steps: The tokenizer's optimiser steps; the default takes less than three minutes.
        prior: Go on to a prior, whose samples and completions the report shows too. Less than five minutes in all.

    Raises:
        ValueError: ``out`` holds something other than a demo, or ``steps`` is below 1.
    """
    start = time.perf_counter()
    steps = STEPS if steps is None else steps
    options = _options(out, seed, steps)
    _clear(out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _new_model()
    print(f"training {PRESET} on sample photographs for {steps} steps", flush=True)
    with _one_thread(), _plain_progress(steps) as progress:
        train_tokenizer(options, model=model, progress=progress)
    trained = time.perf_counter() - start
    if prior:
        print("training a prior on its codes", flush=True)
        with _one_thread():
            train_demo_prior(out, seed, steps)
    note = (
        f"Trained for {trained:.0f} seconds on one CPU core. Who took the photographs: "
        "dqcore/data/sample/ATTRIBUTION.md."
    )
    drawn = galleries(out, seed) if prior else []
    page, evaluation = report_run(
        out, title="dqcore demo: codes where the detail is", note=note, device="cpu", galleries=drawn
    )
    result = DemoResult(page, evaluation, model.config.target_ratio[-1], time.perf_counter() - start)
    write_json(out / "evaluation.json", evaluation.as_json() | {"target_ratio": result.target_ratio})
    for name, value in evaluation.table():
        print(f"{name:<24}{value}")
    print(f"done in {result.seconds:.0f} s; open {page}")
    return result


def _new_model() -> DQVAE:
    """The network with convolutions that keep their input's variance: colour is learned hundreds of steps sooner."""
    model = DQVAE.from_preset(PRESET, **NETWORK)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            torch.nn.init.zeros_(module.bias)
    return model.to(memory_format=torch.channels_last)


def _options(out: Path, seed: int, steps: int) -> TokenizerTraining:
    if steps < 1:
        raise InputError(f"steps: expected at least 1, got {steps}")
    return TokenizerTraining(
        data=sample_folder("train"),
        validation=sample_folder("heldout"),
        preset=PRESET,
        out=out,
        steps=steps,
        batch_size=8,
        image_size=64,
        resize=128,
        in_memory=True,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=min(30, steps),
        gradient_clip=1.0,
        average_decay=0.995,
        perceptual="none",
        discriminator=False,
        seed=seed,
        device="cpu",
        log_every=10,
        validate_every=100,
        checkpoint_every=max(steps, 1),
        workers=0,
    )


def _clear(out: Path) -> None:
    """Remove an earlier demo; refuse to touch anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / "config.json").is_file() or not (out / "metrics.jsonl").is_file():
        raise InputError(f"out: {out} is there already and is no run of dqcore; choose another folder")
    for name in ("model", "prior", "metrics.jsonl", "config.json", "checkpoint.pt", "evaluation.json", "report.html"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small gain little from threads, and lose much where another program wants a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _plain_progress(steps: int) -> Iterator[Any]:
    """None on a terminal, where training shows its own bar; else what prints a line for each validation."""
    if sys.stderr.isatty():
        yield None
        return
    latest: dict[str, Any] = {}

    def show(row: dict[str, Any]) -> None:
        latest.update(row)
        if "val_psnr" in row:
            loss, speed = latest["reconstruction_loss"], latest["images_per_second"]
            numbers = f"L1 {loss:.3f}, held-out PSNR {row['val_psnr']:.2f} dB, {speed:.0f} images/s"
            print(f"step {row['step']:>5} of {steps}: {numbers}", flush=True)

    yield show
