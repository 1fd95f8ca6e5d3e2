"""What the tests of the verbs share: a small tokenizer, pictures, and how to run the command line."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import dqcore
from dqcore import cli


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a saved tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny", channels=8, latent_channels=16, dim=16, resolution=64)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Folder of four noise images, one of another size, one in a folder of its own."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for index, size in enumerate([(64, 48), (64, 48), (50, 30), (64, 48)]):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if index == 3 else ".") / f"{index}.png")
    return folder


@pytest.fixture
def run(capsys):
    """Runs the command line; gives exit code, stdout, stderr."""

    def call(*args):
        code = cli.main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def fails(run):
    """Runs the command line with a mistake; gives the one line that it gets."""

    def call(*args):
        code, _, err = run(*args)
        assert code == 2
        assert re.fullmatch(r"dqcore: error: [^\n]+\n", err), err
        return err

    return call
