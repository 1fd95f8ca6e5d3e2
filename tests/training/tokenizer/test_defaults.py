"""What is chosen where nothing was: by the recipe, and for the machine."""

import logging
from pathlib import Path

import pytest
import torch

from dqcore.backends import Machine, this_machine
from dqcore.distributed import World
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.training import PriorTraining, TokenizerTraining, train_tokenizer
from dqcore.training.tokenizer.images import find_images

CPU = Machine(cores=2, memory=8 << 30)
SMALL_GPU = Machine(cores=8, memory=32 << 30, gpu_memory=8 << 30, gpu="A small one")
LARGE_GPU = Machine(cores=8, memory=32 << 30, gpu_memory=80 << 30, gpu="A large one")


def _resolved(machine, **changes):
    return TokenizerTraining(data=Path("x"), **changes).resolved(machine)


def test_a_cpu_gets_the_small_recipe():
    options = _resolved(CPU)
    assert (options.recipe, options.preset, options.perceptual, options.discriminator) == (
        *("small", "dqvae-small", "none", False),
    )
    assert options.image_size == 96 and options.steps == 2000 and options.epochs is None
    assert options == TokenizerTraining.small("x").resolved(LARGE_GPU)
    assert _resolved(CPU, minutes=4).steps is None
    assert _resolved(CPU, learning_rate=1.0).base_learning_rate is None


def test_a_gpu_gets_the_papers_with_a_batch_that_fits():
    large, small = _resolved(LARGE_GPU), _resolved(SMALL_GPU)
    assert (large.recipe, large.preset, large.batch_size, large.image_size, large.epochs) == (
        *("imagenet", "dqvae-dual", 30, 256, 50),
    )
    assert large.discriminator and large.perceptual == "auto" and large.reconstruction == "l1"
    assert 1 <= small.batch_size < 10
    assert _resolved(SMALL_GPU, batch_size=12).batch_size == 12
    assert _resolved(CPU, recipe="ffhq").batch_size == 30


def test_what_is_resolved_stays():
    for machine in (CPU, SMALL_GPU):
        once = _resolved(machine)
        assert once.resolved(LARGE_GPU) == once.resolved(CPU) == once


def test_a_prior_on_a_cpu_is_small():
    options = PriorTraining(data=Path("x"), tokenizer=Path("y"))
    small, paper = options.resolved(CPU), options.resolved(LARGE_GPU)
    assert (small.preset, small.image_size, small.steps) == ("dqtransformer-tiny", 64, 250)
    assert (paper.preset, paper.image_size, paper.resize, paper.epochs) == ("dqtransformer-base", 256, None, 100)
    assert (paper.views, paper.learning_rate, paper.token_budget, paper.dropout) == (1, 5e-4, 20_000, None)
    assert PriorTraining(codes=Path("x")).resolved(CPU).views == 1
    assert PriorTraining.small(Path("x"), Path("y")).resolved(LARGE_GPU).preset == "dqtransformer-tiny"
    with pytest.raises(ValueError, match="codes: expected either codes or data"):
        PriorTraining().resolved(CPU)


def test_this_machine(monkeypatch):
    machine = this_machine(torch.device("cpu"))
    assert machine.cores >= 1 and machine.memory > 1 << 28 and not machine.gpu
    for threads, cores in ((2, "2 CPU cores"), (1, "1 of 2 CPU cores")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert str(CPU) == f"{cores}, 8 GiB of memory, no GPU"
    assert "A small one with 8 GiB" in str(SMALL_GPU)


def test_a_small_folder_is_read_once(pictures, monkeypatch):
    from dqcore.data import batches

    read, count = batches.read_prepared, []
    monkeypatch.setattr(
        batches, "read_prepared", lambda path, *rest, **more: count.append(path) or read(path, *rest, **more)
    )
    options = TokenizerTraining.small(pictures, image_size=32, batch_size=4, device="cpu").resolved()
    images = find_images(options, World(0, 1, torch.device("cpu")))
    assert images.reading == "images stay in memory" and images.options.workers == 0
    first = [batch.images for batch in images.batches(0, 10)]
    assert len(count) == len(set(count)) == len(images.training)
    fresh = find_images(options, World(0, 1, torch.device("cpu")))
    fresh.training.read = fresh.training._from_disk
    assert all(torch.equal(a, b.images) for a, b in zip(first, fresh.batches(0, 10), strict=True))
    by_workers = TokenizerTraining.small(pictures, workers=3, batch_size=4, device="cpu").resolved()
    assert find_images(by_workers, World(0, 1, torch.device("cpu"))).reading == "3 processes read images"


def test_without_weights_there_is_no_perceptual_loss_and_that_is_said_once(
    tiny, options, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    run = train_tokenizer(options(steps=2, perceptual="auto"), model=tiny(), progress=lambda row: None)
    assert "perceptual_loss" not in run.metrics[0]
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1 and said[0].getMessage().startswith("training without the perceptual loss. perceptual: LPIPS")
    assert TokenizerTraining.of_run(run.path).perceptual == "none"


def test_convolutions_that_keep_their_inputs_variance():
    torch.manual_seed(0)
    deviations = {}
    for kind in ("torch", "variance"):
        model = DQVAE.from_preset("dqvae-small", convolutions=kind)
        conv = model.decoder.conv_out
        x = torch.randn(2, conv.in_channels, 32, 32)
        deviations[kind] = conv(x).std().item()
    assert deviations["variance"] == pytest.approx(1.0, abs=0.25) and deviations["torch"] < 0.7
    with pytest.raises(ValueError, match="convolutions: expected torch or variance, got 'he'"):
        DQVAE.from_preset("dqvae-small", convolutions="he")
